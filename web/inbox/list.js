// What an open panel shows: its header, the notifications by day, and the menu of each.
import { BELL, icon, make, measure } from "./panel.js";
import { describe, moment, plain } from "./describe.js";
import { intl, number, spoken } from "./words.js";

const UNITS = { hour: 3600, minute: 60 }; // seconds
const ICONS = {
	all: "M2 13l4 4L15 7M11 16l1 1L22 7",
	settings: "M4 7h8M19 7h1M4 17h1M12 17h8M12.500 7a3 3 0 1 0 6 0a3 3 0 1 0-6 0M5.500 17a3 3 0 1 0 6 0a3 3 0 1 0-6 0",
	close: "M6 6l12 12M18 6L6 18",
	menu: "M5 12h.01M12 12h.01M19 12h.01",
	empty: "M3 13l3-8h12l3 8v6H3zM3 13h5c0 5 8 5 8 0h5",
	"empty-unread": "M4 12.500l5 5L20 6.500",
	fault: "M12 4L2.500 20h19zM12 10v4M12 17v.01",
};

/** Show pieces. A value may run in the other direction than the text around it. */
function put(element, pieces) {
	if (element.textContent == plain(pieces)) return;
	element.replaceChildren(...pieces.map((piece) => (piece.value == null ? piece : make("bdi", {}, piece.value))));
}

const button = (id, ...children) => make("button", { id, part: id, type: "button" }, ...children);
const words = (attributes) => make("span", { dir: "auto", ...attributes });

function markup() {
	return [
		make("div", { id: "header", part: "header" },
			make("div", { class: "bar" }, make("h2", { id: "title", part: "title", dir: "auto" }),
				button("settings", icon(ICONS.settings)), button("close", icon(ICONS.close))),
			make("div", { class: "bar", id: "bar" }, ...["filter-all", "filter-unread"].map((id) =>
				button(id, make("span"), make("span", { class: "count", "aria-hidden": true }))),
				button("all", icon(ICONS.all), make("span"))),
			make("button", { class: "arrived" })),
		make("div", { id: "note", part: "note" }, make("span", { class: "picture" }), words()),
		make("ul", { id: "list", role: "list" }), button("more"), make("div", { id: "preferences" }),
		make("div", { id: "removed" }, make("span", { id: "deleted", dir: "auto" }), button("undo")),
		make("div", { id: "menu", popover: "", role: "menu" },
			make("button", { id: "mark", role: "menuitem", autofocus: "" }), make("button", { id: "delete", role: "menuitem" })),
	];
}

export const newIcon = () => make("span", { class: "icon", part: "icon", "aria-hidden": true });

/** Show an icon, or a bell in the place of one. Return whether there is one. */
export function showIcon(place, { icon: url, emoji }) {
	const now = url ?? emoji ?? "";
	if (place.firstChild && place.dataset.icon == now) return !!now;
	place.replaceChildren(...(url ? [make("img", { src: url, alt: "" })] : []), emoji ?? icon(BELL));
	if (url) place.firstChild.onerror = ({ target }) => { target.hidden = true; }; // a page's policy may not allow it
	place.dataset.icon = now;
	return !!now;
}

function newRow() {
	const about = make("small", { dir: "auto" }, make("bdi", { class: "name" }), make("time"), make("span", { class: "times" }));
	const text = make("span", { class: "text" }, make("i"), " ", make("b", { part: "row-title", dir: "auto" }), words({ class: "body", part: "row-body" }), about);
	return make("li", { part: "row" }, make("h3", { part: "day", dir: "auto" }),
		make("button", { class: "main" }, newIcon(), text),
		make("button", { class: "menu", "aria-haspopup": "menu" }, icon(ICONS.menu)));
}

const dateOf = ({ timestamp }) => new Date(typeof timestamp == "number" ? timestamp * 1000 : NaN);
const daysAgo = (date) => Math.round((new Date().setHours(0, 0, 0, 0) - new Date(date).setHours(0, 0, 0, 0)) / 864e5);

function dayOf(date) {
	if (isNaN(date)) return "";
	const days = daysAgo(date), lang = spoken();
	if (days < 2) return intl("RelativeTimeFormat", lang, { numeric: "auto" }).format(-Math.max(0, days), "day");
	const year = date.getFullYear() == new Date().getFullYear() ? undefined : "numeric";
	return intl("DateTimeFormat", lang, { weekday: "long", day: "numeric", month: "long", year }).format(date);
}

function timeOf(date, lang) {
	if (daysAgo(date) > 0) return moment(date / 1000, "time", lang);
	const age = Math.max(0, (Date.now() - date) / 1000);
	const [unit, size] = Object.entries(UNITS).find(([, size]) => age >= size) ?? ["second", 60];
	return intl("RelativeTimeFormat", lang, { numeric: "auto" }).format(-Math.floor(age / size), unit);
}

/** Fill the panel, and return what shows a state there. */
export function fill(host, root, part, text, act) {
	const { panel } = part;
	panel.replaceChildren(...markup());
	for (const element of panel.querySelectorAll("[id]")) part[element.id] = element;
	const { list, more, menu, mark, note } = part, arrived = panel.querySelector(".arrived");
	let rows = new Map(), met = new Set(), drawn = [], chosen, opener, next, last, shown, asking, held;

	// What the user asks for is shown at once, wherever the pointer is.
	function asked(task) {
		asking = true;
		task();
		asking = false;
	}

	const buttons = panel.querySelectorAll("button[id]");
	for (const button of buttons) {
		button.onclick = () => {
			if (button.ariaPressed) panel.scrollTop = 0; // another list
			if (button == more) next = list.children.length;
			menu.hidePopover();
			asked(() => act[button.id](chosen));
		};
	}

	arrived.onclick = () => asked(() => {
		panel.scrollTop = 0;
		show(shown);
		list.querySelector(".main").focus();
	});
	panel.onscroll = () => {
		menu.hidePopover();
		rest();
	};
	list.onpointerleave = () => rest();
	// on a phone, beside the sheet
	panel.onclick = ({ target, clientY }) => { if (target == panel && clientY < panel.getBoundingClientRect().top) panel.hidePopover(); };
	menu.onkeydown = (event) => {
		const other = root.activeElement == mark ? part.delete : mark;
		({ ArrowDown: other, ArrowUp: other, Home: mark, End: part.delete })[event.key]?.focus();
		if (event.key == "Tab") event.preventDefault(menu.hidePopover());
	};
	menu.onbeforetoggle = ({ newState }) => { if (newState == "closed" && menu.contains(root.activeElement)) opener.focus(); };

	function openMenu(item, dots) {
		if (chosen?.id != item.id) menu.hidePopover();
		[chosen, opener] = [item, dots];
		mark.textContent = text(item.is_new ? "mark-read" : "mark-unread");
		const { bottom, left, right, width, height } = measure(panel, dots);
		const side = getComputedStyle(host).direction == "rtl" ? `left:${left}px` : `right:${width - right}px`;
		menu.style = `inset:auto;top:${Math.min(bottom, height - 110)}px;${side}`;
	}

	// A row that leads somewhere is a real link.
	function mainOf(li, url) {
		const old = li.querySelector(".main"), name = url ? "a" : "button";
		const main = old.localName == name ? old : make(name, { class: "main" }, ...old.childNodes);
		if (main != old) {
			const held = root.activeElement == old;
			old.replaceWith(main);
			if (held) main.focus();
		}
		if (url) main.href = url;
		return main;
	}

	function showRow(li, item, kinds, day) {
		const row = describe(host, kinds, item), { title, body, url, name, lang } = row;
		const main = mainOf(li, url), dots = li.lastChild, [place, { children: [flag, what, extra, about] }] = main.children;
		const [kind, time, times] = about.children, date = dateOf(item);
		li.className = item.is_new ? "new" : "";
		li.inert = !!item.gone;
		li.firstChild.textContent = day;
		if (chosen?.id == item.id) chosen = item; // an open menu is about what the list says now
		// the second click of two is none
		main.onclick = main.onauxclick = (event) => {
			if (event.detail > 1) event.preventDefault();
			else if (event.button < 2) asked(() => act.select(item, url, event));
		};
		flag.textContent = item.is_new ? text("new") : "";
		put(what, title);
		put(extra, body);
		for (const element of [what, extra, about]) element.lang = lang;
		kind.textContent = name ?? "";
		if (!isNaN(date)) Object.assign(time, { dateTime: date.toISOString(), title: moment(item.timestamp, "", lang), textContent: timeOf(date, lang) });
		times.textContent = item.count > 1 ? `${number(item.count, {}, lang)}×` : "";
		dots.popoverTargetElement = menu;
		dots.ariaLabel = `${text("menu")}: ${plain(title)}`;
		dots.onclick = () => openMenu(item, dots);
		return showIcon(place, row);
	}

	// While somebody points at a row or reads on below, nothing moves: what arrives waits, and what has gone stays, out of use.
	const isRead = () => !asking && (list.matches(":hover") || panel.scrollTop > 8);
	const rest = () => { if (held && !isRead()) show(shown); };

	function settled(items) {
		const ids = new Set(items.map(({ id }) => id)), stays = ({ id }) => ids.has(id);
		const first = items.findIndex(({ id }) => rows.has(id)), isHeld = isRead() && first >= 0;
		const waiting = isHeld ? items.slice(0, first).filter(({ id, is_new }) => is_new && !met.has(id)) : [];
		const now = items.filter((item) => !waiting.includes(item)), gone = isHeld ? drawn.slice(0, drawn.findLastIndex(stays)) : [];
		gone.forEach((item, index) => {
			if (!stays(item)) now.splice(now.findIndex(({ id }) => id == gone[index - 1]?.id) + 1, 0, { ...item, gone: true });
		});
		arrived.hidden = !waiting.length;
		arrived.textContent = waiting.length ? text("arrived", waiting.length) : "";
		held = waiting.length || now.length + waiting.length > items.length;
		return (drawn = now);
	}

	function showList(items, kinds) {
		const known = rows;
		let day, pictured = false;
		rows = new Map(items.map((item) => [item.id, known.get(item.id) ?? newRow()]));
		const kept = new Set(rows.values());
		for (const li of [...list.children]) if (!kept.has(li)) li.remove();
		items.forEach((item, index) => {
			const li = rows.get(item.id), at = list.children[index], its = dayOf(dateOf(item));
			if (at != li) list.insertBefore(li, at ?? null);
			met.add(item.id);
			pictured = showRow(li, item, kinds, its == day ? "" : its) || pictured;
			day = its || day;
		});
		list.classList.toggle("pictured", pictured);
	}

	function label(element, name) {
		const inner = element.querySelector("span");
		if (inner) inner.textContent = text(name);
		else element.ariaLabel = text(name);
		if (element.querySelector("svg")) element.title = text(name);
	}

	function showNote(name, isList) {
		const isFault = !/^(loading|empty.*|)$/.test(name);
		note.className = name && !isList ? `middle ${name}` : isFault ? "fault" : "";
		note.lastChild.textContent = name && text(name);
		const d = ICONS[name] ?? (isFault && ICONS.fault);
		note.firstChild.replaceChildren(...(d ? [icon(d)] : []));
	}

	// If what has the focus goes, the row that takes its place gets it.
	function show(state) {
		const { unread, elements, more: left, unreadOnly, removed, kinds, settings } = (shown = state);
		const items = settled(state.items), focused = root.activeElement, index = [...list.children].indexOf(focused?.closest("li"));
		if (index >= 0) last = index;
		for (const element of [part.title, part.deleted, more, part.undo, part.delete]) element.textContent = text(element.id);
		for (const name of ["settings", "close", "all", "filter-all", "filter-unread"]) label(part[name], name);
		for (const [name, count] of [["filter-all", elements], ["filter-unread", unread]]) {
			part[name].ariaPressed = !!unreadOnly == (name == "filter-unread");
			part[name].lastChild.textContent = count ? number(count) : "";
		}
		showNote(state.note, items.length || settings);
		part.settings.ariaExpanded = settings;
		showList(items, kinds);
		const mains = [...list.querySelectorAll(".main")];
		if (focused == more && mains[next]) mains[next].focus();
		if (mains[next]) next = undefined;
		part.settings.hidden = !host.hasAttribute("settings");
		part.preferences.hidden = !settings;
		part.bar.hidden = list.hidden = settings;
		part.all.hidden = !unread;
		more.hidden = settings || !left;
		part.removed.hidden = !removed;
		if (focused && !(root.activeElement ?? focused).checkVisibility()) (mains[Math.min(last, mains.length - 1)] ?? panel).focus();
	}

	function clear() {
		rows = new Map();
		met = new Set();
		drawn = [];
		shown = next = undefined;
		list.replaceChildren();
		arrived.hidden = true;
	}

	return { show, clear };
}
