// The bell and its panel: the markup, and how it shows a state.
import { language, number, plain } from "./format.js";
import { describe, put, putTime } from "./rows.js";
import { SHEET } from "./style.js";

const MARKUP = `<button id=bell part=bell popovertarget=panel aria-expanded=false><slot><svg viewBox="0 0 24 24"
fill=none stroke=currentColor stroke-width=1.8><path d="M5 17c1-1 2-3 2-6a5 5 0 0 1 10 0c0 3 1 5 2 6zM10 20h4M12 3v3"/>
</svg></slot><span id=badge></span></button><div id=status role=status></div>
<div id=panel part=panel popover autofocus tabindex=-1 role=dialog aria-labelledby=title><header><strong id=title></strong>
<button id=settings></button><button id=close></button>
<div id=bar><button id=filter-all></button><button id=filter-unread></button><button id=all></button></div></header>
<div id=note></div><ul id=list role=list></ul><button id=more></button><div id=preferences></div>
<div id=removed><span id=deleted></span><button id=undo></button></div>
<div id=menu popover role=menu><button id=mark role=menuitem autofocus></button><button id=delete role=menuitem></button></div></div>
<template><li><button><img hidden alt=""><i></i> <b></b><span></span><time></time></button><button class=menu aria-haspopup=menu></button></li><label><span></span><small></small><input type=checkbox role=switch></label></template>`;
const ACTIONS = ["all", "more", "undo", "settings", "mark", "delete", "filter-all", "filter-unread"];
const TEXTS = ["title", "all", "more", "deleted", "undo", "settings", "close", "delete", "filter-all", "filter-unread"];

/** Put the bell into `host`. `act` has what its buttons do. Return what shows a state. */
export function view(host, text, act) {
	const root = host.attachShadow({ mode: "open" });
	root.adoptedStyleSheets = [SHEET];
	root.innerHTML = MARKUP;
	const part = Object.fromEntries([...root.querySelectorAll("[id]")].map((element) => [element.id, element]));
	const { bell, panel, list, more, menu, mark } = part;
	const [row, toggle] = root.querySelector("template").content.children;
	let rows = new Map(), chosen, next, last;

	for (const name of ACTIONS) {
		part[name].onclick = () => {
			if (name == "more") next = list.children.length;
			menu.hidePopover();
			act[name](chosen);
		};
	}
	part.close.onclick = () => panel.hidePopover();
	panel.onscroll = () => menu.hidePopover();
	panel.onbeforetoggle = ({ newState }) => {
		const open = newState == "open";
		place();
		bell.ariaExpanded = open;
		if (!open && root.activeElement) bell.focus();
		act.toggled(open);
	};
	menu.onkeydown = (event) => {
		const other = root.activeElement == mark ? part.delete : mark;
		({ ArrowDown: other, ArrowUp: other, Home: mark, End: part.delete })[event.key]?.focus();
		if (event.key == "Tab") event.preventDefault(menu.hidePopover()); // back to the row
	};

	/** The panel goes below the bell or above it, and towards the middle of the window. */
	function place() {
		const { top, bottom, left, right } = bell.getBoundingClientRect();
		const below = innerHeight - bottom, down = below > Math.min(top, 400);
		panel.style = `--top:${down ? `${bottom}px` : "auto"};--bottom:${down ? "auto" : `${innerHeight - top}px`};`
			+ `--x:${left + right < innerWidth ? `${left}px` : `${right}px - 24rem`};--room:${(down ? below : top) - 8}px`;
	}

	function openMenu(item, dots) {
		if (chosen != item) menu.hidePopover();
		chosen = item;
		mark.textContent = text(item.is_new ? "mark-read" : "mark-unread");
		const { bottom, left, right } = dots.getBoundingClientRect();
		const side = getComputedStyle(host).direction == "rtl" ? `left:${left}px` : `right:${innerWidth - right}px`;
		menu.style = `inset:auto;top:${Math.min(bottom, innerHeight - 100)}px;${side}`;
	}

	/** A row that leads somewhere is a real link, any other a button. */
	function mainOf(li, url) {
		const old = li.firstChild, name = url ? "a" : "button";
		if (old.localName != name) {
			const held = root.activeElement == old, main = document.createElement(name);
			main.append(...old.childNodes);
			old.replaceWith(main);
			if (held) main.focus();
		}
		if (url) li.firstChild.href = url;
		return li.firstChild;
	}

	function showRow(li, item, kinds) {
		const { title, body, url, icon } = describe(host, kinds, item);
		const main = mainOf(li, url), dots = li.lastChild, [image, flag, what, extra, time] = main.children;
		li.className = item.is_new ? "new" : "";
		main.onclick = main.onauxclick = (event) => event.button < 2 && act.select(item, url, event);
		flag.textContent = item.is_new ? text("new") : "";
		put(what, title);
		put(extra, body);
		putTime(time, item.timestamp);
		image.hidden = !icon;
		if (icon) image.src = icon;
		dots.popoverTargetElement = menu;
		dots.ariaLabel = `${text("menu")}: ${plain(title)}`;
		dots.onclick = () => openMenu(item, dots);
	}

	function showList(items, kinds) {
		const known = rows;
		rows = new Map(items.map((item) => [item.id, known.get(item.id) ?? row.cloneNode(true)]));
		const kept = new Set(rows.values());
		for (const li of [...list.children]) if (!kept.has(li)) li.remove();
		items.forEach((item, index) => {
			const li = rows.get(item.id), at = list.children[index];
			if (at != li) list.insertBefore(li, at ?? null);
			showRow(li, item, kinds);
		});
	}

	/** Show a state. If what has the focus goes, the row that takes its place gets it. */
	function show({ items, unread, left, note, filter, removed, kinds, settings }) {
		const held = root.activeElement, index = [...list.children].indexOf(held?.closest("li"));
		if (index >= 0) last = index;
		for (const name of TEXTS) part[name].textContent = text(name);
		bell.ariaLabel = text("title") + (unread ? `, ${text("unread", unread)}` : "");
		part.badge.textContent = unread > 99 ? `${number(99, language())}+` : unread ? number(unread, language()) : "";
		part.note.textContent = note;
		part["filter-all"].ariaPressed = !filter;
		part["filter-unread"].ariaPressed = !!filter;
		part.settings.ariaExpanded = settings;
		showList(items, kinds);
		if (held == more && list.children[next]) list.children[next].firstChild.focus();
		if (list.children[next]) next = undefined;
		part.settings.hidden = !host.hasAttribute("settings");
		part.preferences.hidden = !settings;
		part.bar.hidden = list.hidden = settings;
		part.all.hidden = !unread;
		more.hidden = settings || !left;
		part.removed.hidden = !removed;
		if (held?.checkVisibility() === false) (list.children[Math.min(last, items.length - 1)]?.firstChild ?? panel).focus();
	}

	return { show, part, toggle, say: (words) => { part.status.textContent = words; } };
}
