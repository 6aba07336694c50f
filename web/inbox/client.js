// A user's inbox without anything that is drawn: its state, its events, and what can be done. See docs/bell.md.
import { live, requests, within } from "./service.js";

const PAGE = 20, MOST = 1000; // notifications
const PATIENCE = 5e3; // ms
const idOf = ({ id }) => id;

/**
 * Return an EventTarget that follows an inbox between `start()` and `stop()`.
 * `options` has `userId` and, as far as they are needed, `getToken`, `token`, `src`, `poll` and `unreadOnly`.
 */
export function createInbox(options) {
	let items, total, unread, unseen, size, listed, loaded, fault, kinds, seen, newest, untold; // of the user
	let filter = options.unreadOnly, running = false, patience, counts, writes = 0, users = 0, queue = Promise.resolve();
	const gone = new Set(); // ids of what the list may still have
	const inbox = new EventTarget();
	const { at, call, forget, renewsIn } = requests(options, refused);
	const link = live(options, {
		at, call, changed, current, heard, learn, renewsIn, sync, tell,
		listed: () => items.map(idOf), stopped: () => !running || fault == "invalid",
	});

	function emit(type, detail) {
		inbox.dispatchEvent(new CustomEvent(type, { detail }));
	}

	function state() {
		const hidden = items.filter((item) => gone.has(item.id)), now = unread - hidden.filter((item) => item.is_new).length;
		return {
			items: items.filter((item) => !gone.has(item.id) && (item.is_new || !filter)),
			elements: total - hidden.length, unread: now, unseen: Math.min(unseen ?? now, now),
			more: listed < Math.min(filter ? unread : total, MOST), unreadOnly: filter, loaded, fault, kinds,
		};
	}

	function changed() {
		const { unread, unseen } = (inbox.state = state()), before = counts;
		counts = loaded && `${unread} ${unseen}`;
		emit("change");
		if (loaded && counts != before) emit("count", { unread, unseen });
	}

	function fail(name) {
		fault = name;
		changed();
	}

	function refused(user) {
		if (user != options.userId) return;
		link.run.abort();
		link.fails++;
		clearTimeout(patience);
		patience = setTimeout(fail, options.getToken ? 0 : PATIENCE, "unauthorized");
		emit("unauthorized");
	}

	async function learn() {
		const { signal } = link.run;
		try {
			const reply = await fetch(at("kinds"), { signal: within(signal) });
			const { data } = await reply.json();
			if (!reply.ok || signal.aborted) return;
			kinds = data;
			changed();
		} catch {} // until the next start, rows say what they did before
	}

	// Lists and writes take turns.
	const inTurn = (task) => (queue = queue.then(task, task));

	async function list(limit, signal) {
		const query = filter ? { limit, is_new: true } : { limit };
		return (await (await call("list", query, { signal: within(signal) })).json()).data;
	}

	function sync() {
		const asked = writes, { signal } = link.run;
		return inTurn(async () => {
			const limit = size;
			let data = await list(limit, signal), last = data.list.at(-1);
			// more may have come while the page was hidden
			if (loaded && data.list.length == limit && !seen.has(last?.id) && last?.timestamp >= newest) data = await list(MOST, signal);
			if (!signal.aborted && asked == writes) take(data, limit);
		}).catch(({ status }) => {
			if (signal.aborted) return;
			if (status == 422) return link.run.abort(fail("invalid"));
			fail("error");
			link.start(2000 * 2 ** link.fails++ * Math.random());
		});
	}

	function take(data, limit) {
		const ids = new Set(), list = data.list.filter((item) => item?.id && !ids.has(item.id) && ids.add(item.id));
		const known = list.findIndex(({ id }) => seen.has(id));
		const fresh = list.slice(0, known < 0 ? MOST : known)
			.filter((item) => loaded && item.is_new && (known >= 0 || !(item.timestamp < newest)));
		for (const { id, timestamp } of list) {
			seen.add(id);
			if (timestamp > newest) newest = timestamp;
		}
		clearTimeout(patience);
		[items, total, unread, unseen, listed, loaded] = [list.slice(0, limit), data.elements, data.new, data.unseen, limit, true];
		untold.push(...fresh.reverse());
		if (fault != "undone") fault = undefined;
		changed();
		tell();
	}

	// Of the bells of a browser that show one inbox, only the one that leads reports what arrives.
	function tell() {
		if (!link.leads || !untold.length) return;
		link.post(untold.map(idOf));
		for (const item of untold.splice(0)) emit("notification", item);
	}

	// Another bell has reported these.
	function heard(ids) {
		for (const id of ids) seen.add(id);
		untold = untold.filter(({ id }) => !ids.includes(id));
	}

	// Whether the list is what the stream says. Unread ones alone do not tell.
	function current({ elements, new: count, unseen: later, latest }) {
		return loaded && !filter && elements == total && count == unread && later == unseen && latest?.id == items[0]?.id;
	}

	const post = (path, query, user) => call(path, query, { method: "POST", keepalive: true, signal: within(), user });

	// `change(true)` shows it at once; if it is not accepted, `change(false)` takes it back.
	async function write(path, query, change, user) {
		const owner = users;
		let undone;
		fault = undefined;
		writes++;
		change(true);
		changed();
		const done = post(path, query, user).catch(({ status }) => {
			if (owner != users || (path == "delete" && status == 404)) return;
			undone = true;
			change(false);
			changed();
		});
		inTurn(() => done);
		await sync();
		if (undone && !fault) fail("undone");
	}

	function mark(marked, isNew, query, count) {
		return write(isNew ? "unread" : "read", query, (forward) => {
			for (const item of marked) item.is_new = forward == isNew;
			unread += forward == isNew ? count : -count;
		});
	}

	function reset() {
		users++;
		[items, total, unread, newest, size, listed, seen, untold] = [[], 0, 0, 0, PAGE, 0, new Set(), []];
		unseen = loaded = fault = kinds = counts = undefined;
		link.fails = 0;
		link.leave();
		forget();
	}

	function update(anew) {
		if (anew) reset();
		clearTimeout(patience);
		changed();
		link.start(500 * 2 ** link.fails - 1000);
	}

	function refresh() {
		link.fails = 0;
		link.start();
	}

	const { start } = link;
	reset();
	return Object.assign(inbox, {
		call, fail, refresh, update, state: state(),
		start() {
			running = true;
			addEventListener("online", refresh);
			addEventListener("pagehide", link.leave);
			update();
		},
		stop() {
			running = false;
			removeEventListener("online", refresh);
			removeEventListener("pagehide", link.leave);
			document.removeEventListener("visibilitychange", start); // it would keep an element that has been removed
			link.leave();
		},
		// The user looks at the inbox, so a broken connection is tried again.
		retry() { if (fault || !link.streams) start(); },
		more() {
			size += PAGE;
			return sync();
		},
		show(unreadOnly) {
			filter = unreadOnly;
			size = PAGE;
			writes++;
			changed();
			return sync();
		},
		mark: (item, isNew) => mark([item], isNew, { notification_id: item.id }, 1),
		markAll: () => mark(items.filter((item) => item.is_new), false, { all: true }, unread),
		hide(item, hidden = true) {
			gone[hidden ? "add" : "delete"](item.id);
			changed();
		},
		delete: (item, user) => write("delete", { notification_id: item.id }, (away) => gone[away ? "add" : "delete"](item.id), user),
		// In turn: a list that was asked for before would bring the old count back.
		seen: () => inTurn(async () => {
			if (!loaded || !(unseen ?? unread)) return;
			await post("seen");
			unseen = 0;
			changed();
		}).catch(() => {}), // the next time will do
	});
}
