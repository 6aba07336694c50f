// See docs/bell.md.
const TEXTS = {
	title: "Notifications", unread: "{} unread", new: "Unread:", all: "Mark all as read", more: "Load more",
	empty: "Nothing here yet.", error: "No connection. Trying again.", undone: "That did not work.",
	unauthorized: "Please sign in again.", invalid: "This inbox cannot be shown.",
};
const UNITS = { year: 31536e3, month: 2592e3, day: 86400, hour: 3600, minute: 60 };
const PAGE = 20, SILENCE = 45e3; // ms
const SHEET = new CSSStyleSheet();
SHEET.replaceSync(`
:host{display:inline-block;color-scheme:light dark}
div,button{--bg:var(--notifier-background,Canvas);--accent:var(--notifier-accent,light-dark(#0b57d0,#8ab4f8))}
:host([hidden]),[hidden],#note:empty,#badge:empty{display:none!important}
#panel,ul{margin:0;padding:0}
button{font:inherit;color:inherit;background:none;border:0;border-radius:.5rem;cursor:pointer}
button:hover{background:#8882}
:focus-visible{outline:2px solid;outline-offset:-2px}
#bell{display:flex;position:relative;padding:.5rem}
svg{width:1.5em}
#badge{position:absolute;top:0;right:0;min-width:.8em;padding:0 .3em;border:1px solid #0000;border-radius:1em;
font:700 .7rem/1.3 system-ui;color:var(--bg);background:var(--accent)}
#panel{inset:min(var(--y),24vh) auto auto clamp(.5rem,var(--x) - 24rem,100vw - 24.5rem);width:24rem;max-height:75vh;overflow:auto;font-size:.94rem;line-height:1.4;
color:var(--notifier-color,CanvasText);background:var(--bg);border:1px solid #8888;border-radius:.8rem;box-shadow:0 0 2rem #0004}
header{position:sticky;top:0;z-index:1;display:flex;padding:.5rem .5rem .5rem 1rem;background:var(--bg)}
strong{flex:1;align-self:center}
#all,#more{color:var(--accent);padding:.5rem}
#more{display:block;margin:.3rem auto}
#note{padding:1rem}
li{display:block;border-top:1px solid #8885}
li button{width:100%;padding:.7rem 1rem;border-radius:0;text-align:start;overflow-wrap:anywhere}
b,li span{display:block}
li:not(.new) b{font-weight:400}
.new b:before{content:"● "/"";color:var(--accent)}
li span,time{opacity:.75;font-size:.85em}
i,#status{position:fixed;clip-path:inset(50%)}
@media(max-width:30rem){#panel{inset:auto 0 0;width:auto}}
`);
const show = (value) => (typeof value == "object" ? JSON.stringify(value) : `${value ?? ""}`).slice(0, 200);
const valueAt = (item, path) =>
	path.split(".").reduce((value, name) => (Object.hasOwn(Object(value), name) ? value[name] : undefined), item);
const fill = (text, item) => text.replace(/{([^{}|]+)(?:\|([^{}]*))?}/g, (_, path, other = "") => {
	const value = valueAt(item, path);
	return value == null ? other : show(value);
});
const language = () => (document.documentElement.lang || navigator.language || "").replaceAll("_", "-");
// The label in the language, or in the one it is a form of: RFC 4647, section 3.4.
const translated = (labels, tag) => {
	const known = new Map(Object.entries(labels ?? {}).map(([tag, label]) => [tag.toLowerCase(), label]));
	for (tag = tag.toLowerCase(); tag; tag = tag.replace(/(^|-)[^-]*$/, "")) if (known.has(tag)) return known.get(tag);
};
const times = (lang) => {
	try {
		return new Intl.RelativeTimeFormat(lang, { numeric: "auto" });
	} catch {
		return times();
	}
};

function inbox(host) {
	const root = host.attachShadow({ mode: "open" });
	let items, total, unread, size, loaded, fault, fails, rows = new Map();
	let run = new AbortController(), queue = Promise.resolve(), timer, streams, retry = 2000, writes = 0, kinds, announced;
	root.adoptedStyleSheets = [SHEET];
	root.innerHTML = `<button id=bell part=bell popovertarget=panel aria-expanded=false><slot><svg viewBox="0 0 24 24"
fill=none stroke=currentColor stroke-width=1.8><path d="M5 17c1-1 2-3 2-6a5 5 0 0 1 10 0c0 3 1 5 2 6zM10 20h4M12 3v3"/>
</svg></slot><span id=badge></span></button><div id=status role=status></div>
<div id=panel part=panel popover autofocus tabindex=-1 role=dialog aria-labelledby=title><header><strong id=title></strong>
<button id=all></button></header><div id=note></div><ul id=list role=list></ul><button id=more></button></div>
<template id=row><li><button><i></i> <b dir=auto></b><span dir=auto></span><time></time></button></li></template>`;
	const [bell, badge, status, panel, title, all, note, list, more, sample] = root.querySelectorAll("[id]");
	all.onclick = () => read(items.filter((item) => item.is_new), { all: true }, unread);
	more.onclick = () => { size += PAGE; sync(); };
	panel.onbeforetoggle = ({ newState }) => {
		const { right, bottom } = bell.getBoundingClientRect();
		panel.style = `--x:${right}px;--y:${bottom}px`;
		bell.ariaExpanded = newState == "open";
		if (newState == "closed" && root.activeElement) bell.focus();
		if (fault || !streams) start();
	};

	const get = (name) => host.getAttribute(name);
	const text = (name, value) => (get(`text-${name}`) ?? TEXTS[name]).replace("{}", value);
	const phrase = ({ key }) => {
		const { label, labels } = kinds?.[key] ?? {};
		return get(`label-${key}`) ?? translated(labels, language()) ?? label;
	};
	const label = (item, text = phrase(item)) =>
		text ? fill(`${text}`, item) : show(item.key).replaceAll("_", " ").replace(/^./, (c) => c.toUpperCase());
	const emit = (type, detail) => host.dispatchEvent(new CustomEvent(type, { detail, bubbles: true, composed: true }));
	const fail = (name) => {
		fault = name;
		announced = false;
		status.textContent = text(name);
		render();
	};

	const at = (path) => new URL(path, new URL(get("src") ?? import.meta.url, document.baseURI));

	async function learn() {
		const { signal } = run;
		try {
			const reply = await fetch(at("kinds"), { signal: AbortSignal.any([signal, AbortSignal.timeout(15e3)]) });
			const { data } = await reply.json();
			if (!reply.ok || signal.aborted) return;
			kinds = data;
			render();
		} catch {} // until the next start, rows say what they did before
	}

	async function call(path, query, init) {
		const token = get("token"), headers = token ? { Authorization: `Bearer ${token}` } : {};
		const url = at(`${path}?${new URLSearchParams({ ...query, user_id: get("user-id") })}`);
		const reply = await fetch(url, { ...init, headers });
		if (reply.ok) return reply;
		if (/40[13]/.test(reply.status) && token == get("token")) {
			run.abort();
			fails++;
			fail("unauthorized");
			emit("notifier-unauthorized");
		}
		if (reply.status == 422 && !init.method) run.abort(fail("invalid"));
		throw reply;
	}

	// Lists and writes take turns.
	const inTurn = (task) => (queue = queue.then(task, task));

	function sync() {
		const asked = writes, { signal } = run;
		return inTurn(async () => {
			const init = { signal: AbortSignal.any([signal, AbortSignal.timeout(15e3)]) };
			const { data } = await (await call("list", { limit: size }, init)).json();
			const listed = data.list.filter((item) => item?.id);
			const known = listed.findIndex(({ id }) => rows.has(id));
			if (signal.aborted || asked != writes) return;
			if (!announced) status.textContent = ""; // what is announced stays: the next list may come at once
			const fresh = listed.slice(0, known < 0 ? PAGE : known).filter((item) => loaded && item.is_new);
			[items, total, unread, loaded] = [listed, data.elements, data.new, true];
			if (fault != "undone") fault = 0;
			render();
			for (const item of fresh.reverse()) {
				status.textContent = `${text("unread", unread)}: ${label(item)}`;
				announced = true;
				emit("notification", item);
			}
		}).catch(() => {
			if (signal.aborted) return;
			fail("error");
			start(2000 * 2 ** fails++ * Math.random());
		});
	}

	async function read(marked, query, count) {
		let undone;
		const mark = (is_new, by) => {
			for (const item of marked) item.is_new = is_new;
			unread += by;
			render();
		};
		fault = 0;
		writes++;
		mark(false, -count);
		const done = call("read", query, { method: "POST", keepalive: true, signal: AbortSignal.timeout(15e3) })
			.catch(() => mark(true, (undone = count)));
		inTurn(() => done);
		await sync();
		if (undone && !fault) fail("undone");
	}

	function again(wait) {
		clearTimeout(timer);
		timer = setTimeout(live, Math.min(wait, SILENCE));
	}

	function start(wait) {
		run.abort();
		streams = true;
		again(+wait || 0);
	}

	async function live() {
		run.abort();
		if (!host.isConnected) return;
		document.addEventListener("visibilitychange", start, { once: true });
		if (document.hidden || !get("user-id") || fault == "invalid") return;
		const { signal } = (run = new AbortController());
		let pause, rest = "";
		learn();
		try {
			await sync();
			if (signal.aborted) return;
			if (!streams) {
				fails = 0;
				return again((+get("poll") || 15) * 1e3);
			}
			again(SILENCE);
			const { body } = await call("stream", {}, { signal }), reader = body.pipeThrough(new TextDecoderStream()).getReader();
			for (let chunk; !(chunk = await reader.read()).done; signal.aborted || again(SILENCE)) {
				const lines = /[^]*[\r\n]|/.exec((rest += chunk.value))[0];
				rest = rest.slice(lines.length);
				retry = /^retry: ?(\d{3,})/m.exec(lines)?.[1] ?? retry;
				fails = 0;
				if (/^data/m.test(lines)) await sync();
				render();
			}
		} catch ({ status }) {
			if (signal.aborted) return;
			if (/40[45]|501/.test(status)) streams = false;
			pause = 1000 * 2 ** fails++;
		}
		signal.aborted || again((pause ?? retry) * (1 + Math.random()));
	}

	function render() {
		const held = root.activeElement, known = rows;
		const format = times(language());
		for (const part of [title, all, more]) part.textContent = text(part.id);
		bell.ariaLabel = text("title") + (unread ? `, ${text("unread", unread)}` : "");
		badge.textContent = unread || "";
		all.hidden = !unread;
		note.textContent = fault ? text(fault) : loaded && !total ? text("empty") : "";
		more.hidden = size >= Math.min(total, 1000);
		rows = new Map();
		items.forEach((item, index) => {
			const row = known.get(item.id) ?? sample.content.firstChild.cloneNode(true), at = list.children[index];
			rows.set(item.id, row);
			if (at != row) list.insertBefore(row, at ?? null);
			const [flag, what, extra, time] = row.firstChild.children;
			row.className = item.is_new ? "new" : "";
			row.onclick = () => {
				emit("notifier-select", item);
				if (item.is_new) read([item], { notification_id: item.id }, 1);
			};
			flag.textContent = item.is_new ? text("new") : "";
			what.textContent = label(item);
			const pairs = phrase(item) ? [] : Object.entries(item.data ?? {});
			extra.textContent = pairs.map((pair) => pair.map(show).join(": ")).join(" · ").slice(0, 200);
			try {
				const age = Math.max(0, Date.now() / 1000 - item.timestamp);
				const [unit, size] = Object.entries(UNITS).find(([, size]) => age >= size) ?? ["second", 60];
				time.textContent = format.format(-Math.floor(age / size), unit);
			} catch {}
		});
		while (list.children[items.length]) list.lastChild.remove();
		if (held?.checkVisibility() === false) panel.focus();
	}

	return (reset) => {
		if (reset || !items) {
			[items, total, unread, fails, size, loaded, fault, kinds] = [[], 0, 0, 0, PAGE];
			status.textContent = "";
		}
		render();
		start(500 * 2 ** fails - 1000);
	};
}

customElements.define("notifier-inbox", class extends HTMLElement {
	static observedAttributes = ["user-id", "token", "src"];
	#update = inbox(this);
	connectedCallback() { this.#update(); }
	disconnectedCallback() { this.#update(); }
	attributeChangedCallback(name, old, now) { this.#update(name != "token" && old != now); }
});
