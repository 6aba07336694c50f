// The custom element <notifier-inbox>. See docs/bell.md.
import { view } from "./inbox/panel.js";
import { live, requests } from "./inbox/service.js";
import { describe, plain, textsOf } from "./inbox/words.js";

const PAGE = 20, MOST = 1000; // notifications
const TIMEOUT = 15e3, UNDO = 6e3, PATIENCE = 5e3; // ms
const FILTER = "notifier-filter"; // in sessionStorage

function inbox(host) {
	let items, total, unread, size, listed, loaded, fault, kinds, seen, newest; // of the user
	let filter = false, settings = false, switches, removed, announced, patience, writes = 0, users = 0, queue = Promise.resolve();
	const gone = new Set(); // ids of what the list may still have
	try {
		filter = sessionStorage[FILTER] == "unread";
	} catch {} // a page may have no storage

	const get = (name) => host.getAttribute(name);
	const text = textsOf(host, () => render());
	const { at, call, forget, renewsIn } = requests(host, refused);
	const { show, part, say } = view(host, text, {
		select, settings: toggleSettings, toggled, undo: () => settle(false), delete: remove, close: () => part.panel.hidePopover(),
		all: () => mark(items.filter((item) => item.is_new), false, { all: true }, unread),
		mark: (item) => mark([item], !item.is_new, { notification_id: item.id }, 1),
		more: () => { size += PAGE; sync(); },
		"filter-all": () => choose(false),
		"filter-unread": () => choose(true),
	});
	const link = live(host, { call, learn, render, renewsIn, sync, stopped: () => fault == "invalid" });

	const counted = () => unread - items.filter((item) => gone.has(item.id) && item.is_new).length;

	function render() {
		const all = total - items.filter((item) => gone.has(item.id)).length, nothing = filter ? "empty-unread" : "empty";
		show({
			items: items.filter((item) => !gone.has(item.id) && (item.is_new || !filter)),
			unread: counted(), all, left: listed < Math.min(filter ? unread : total, MOST),
			state: fault || (settings || (filter ? counted() : all) ? "" : loaded ? nothing : "loading"), filter, kinds, removed, settings,
		});
		if (settings) switches?.show(kinds);
	}

	function emit(type, detail, more = {}) {
		const event = new CustomEvent(type, { detail, bubbles: true, composed: true, cancelable: type == "notifier-select" });
		host.dispatchEvent(Object.assign(event, more));
		return event;
	}

	function fail(name) {
		fault = name;
		announced = false;
		say(text(name));
		render();
	}

	function refused(user) {
		if (user != get("user-id")) return;
		link.run.abort();
		link.fails++;
		clearTimeout(patience);
		patience = setTimeout(fail, host.getToken ? 0 : PATIENCE, "unauthorized");
		emit("notifier-unauthorized");
	}

	async function learn() {
		const { signal } = link.run;
		try {
			const reply = await fetch(at("kinds"), { signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]) });
			const { data } = await reply.json();
			if (!reply.ok || signal.aborted) return;
			kinds = data;
			render();
		} catch {} // until the next start, rows say what they did before
	}

	// Lists and writes take turns.
	const inTurn = (task) => (queue = queue.then(task, task));

	async function list(limit, signal) {
		const query = filter ? { limit, is_new: true } : { limit };
		const reply = await call("list", query, { signal: AbortSignal.any([signal, AbortSignal.timeout(TIMEOUT)]) });
		return (await reply.json()).data;
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
		if (!announced) say(""); // what is announced stays: the next list may come at once
		[items, total, unread, listed, loaded] = [list.slice(0, limit), data.elements, data.new, limit, true];
		if (fault != "undone") fault = 0;
		render();
		for (const item of fresh.reverse()) {
			say(`${text("unread", counted())}: ${plain(describe(host, kinds, item).title)}`);
			announced = true;
			emit("notification", item);
		}
	}

	// `change(true)` shows it at once; if it is not accepted, `change(false)` takes it back.
	async function write(path, query, change, user) {
		const owner = users;
		let undone;
		fault = 0;
		writes++;
		change(true);
		render();
		const init = { method: "POST", keepalive: true, signal: AbortSignal.timeout(TIMEOUT), user };
		const done = call(path, query, init).catch(({ status }) => {
			if (owner != users || (path == "delete" && status == 404)) return;
			undone = true;
			change(false);
			render();
		});
		inTurn(() => done);
		await sync();
		if (undone && !fault) fail("undone");
	}

	function mark(marked, isNew, query, count) {
		write(isNew ? "unread" : "read", query, (forward) => {
			for (const item of marked) item.is_new = forward == isNew;
			unread += forward == isNew ? count : -count;
		});
	}

	function select(item, url, click) {
		const elsewhere = click.button || click.ctrlKey || click.metaKey || click.shiftKey; // a link in another tab
		if (elsewhere && !url) return;
		const { defaultPrevented } = elsewhere ? {} : emit("notifier-select", item, { url });
		if (defaultPrevented) click.preventDefault();
		if (item.is_new) mark([item], false, { notification_id: item.id }, 1);
		if (defaultPrevented || (url && !elsewhere)) part.panel.hidePopover();
	}

	function remove(item) {
		settle(true);
		gone.add(item.id);
		removed = { item, user: get("user-id"), timer: setInterval(expire, UNDO) };
		render();
		fault || say(text("deleted"));
		part.undo.focus();
	}

	// Somebody who is on the button needs it still (WCAG 2.2.1).
	function expire() {
		if (!part.undo.matches(":focus,:hover")) settle(true);
	}

	function settle(forGood) {
		if (!removed) return;
		const { item, user, timer } = removed;
		clearInterval(timer);
		removed = undefined;
		if (forGood) write("delete", { notification_id: item.id }, (away) => gone[away ? "add" : "delete"](item.id), user);
		else render(gone.delete(item.id));
	}

	function choose(unreadOnly) {
		filter = unreadOnly;
		try {
			sessionStorage[FILTER] = filter ? "unread" : "all";
		} catch {}
		size = PAGE;
		writes++;
		render();
		sync();
	}

	async function toggleSettings() {
		settings = !settings;
		fault = 0;
		render();
		if (!settings) return;
		try {
			const { preferences } = await import("./inbox/preferences.js");
			switches ??= preferences(host, part.preferences, { call, text, failed: () => fail("undone") });
			await switches.load();
			render();
		} catch {
			fail("undone");
		}
	}

	function toggled(open) {
		if (!open) {
			settings = false;
			settle(true);
			render();
		}
		if (fault || !link.streams) link.start();
	}

	function update(reset) {
		if (reset || !items) {
			settle(true);
			users++;
			switches = undefined;
			[items, total, unread, listed, newest, size, seen, loaded, fault, kinds] = [[], 0, 0, 0, 0, PAGE, new Set()];
			link.fails = 0;
			forget();
			say("");
		}
		clearTimeout(patience);
		render();
		link.start(500 * 2 ** link.fails - 1000);
	}

	return {
		update, render, count: counted,
		refresh: () => { link.fails = 0; link.start(); },
		leave: () => settle(true),
		panel: part.panel,
	};
}

class NotifierInbox extends HTMLElement {
	static observedAttributes = ["user-id", "token", "src"];
	#inbox = inbox(this);
	#given = {};
	#left;

	connectedCallback() {
		for (const name of ["format", "getToken"]) { // a page may have set them before this module came
			const { [name]: value } = this;
			if (delete this[name] && value) this[name] = value;
		}
		const { render, refresh, leave, update } = this.#inbox;
		const { signal } = (this.#left = new AbortController()), seen = new MutationObserver(render);
		for (const element of [this, document.documentElement]) seen.observe(element, { attributes: true });
		signal.addEventListener("abort", () => seen.disconnect());
		addEventListener("online", refresh, { signal });
		addEventListener("pagehide", leave, { signal });
		update();
	}
	disconnectedCallback() {
		this.#left.abort();
		this.#inbox.leave();
		this.#inbox.update();
	}
	attributeChangedCallback(name, old, now) { this.#inbox.update(name != "token" && old != now); }

	get format() { return this.#given.format; }
	set format(format) {
		this.#given.format = format;
		this.#inbox.render();
	}
	get getToken() { return this.#given.getToken; }
	set getToken(getToken) {
		const { getToken: before } = this.#given;
		this.#given.getToken = getToken;
		if (!before) this.#inbox.update(); // frameworks set a new function at each rendering
	}

	get unread() { return this.#inbox.count(); }
	refresh() { this.#inbox.refresh(); }
	open() { if (this.isConnected) this.#inbox.panel.showPopover(); }
	close() { this.#inbox.panel.hidePopover(); }
}

customElements.get("notifier-inbox") ?? customElements.define("notifier-inbox", NotifierInbox);
