// The bell and its panel: the markup, and how it shows a state.
import { ago, describe, moment, number, plain } from "./words.js";

// A rem is the page's, whatever its size; a page's other styles end at #root.
const CSS = `
:host{all:initial;display:inline-block;vertical-align:middle;min-width:44px;min-height:44px;font-family:inherit;color:inherit;color-scheme:inherit;visibility:inherit;pointer-events:inherit}
#root{all:initial;display:block;font:16px/1.25 system-ui;font-family:inherit;color:inherit;color-scheme:inherit;visibility:inherit;pointer-events:inherit}
:host,div,button{--bg:var(--notifier-background,Canvas);--accent:var(--notifier-accent,light-dark(#0b57d0,#8ab4f8))}
:host([hidden]),[hidden],#note:empty,#badge:empty,li span:empty{display:none!important}
#panel,ul{margin:0;padding:0}
button,a{font:inherit;color:inherit;background:none;border:0;border-radius:.5rem;cursor:pointer;text-decoration:none}
:is(button,a):hover{background:#8882}
:focus-visible{outline:2px solid;outline-offset:-2px}
#bell{display:flex;position:relative;padding:10px}
svg{width:1.5em}
#badge{position:absolute;top:0;inset-inline-start:55%;min-width:.8em;padding:0 .3em;border-radius:1em;
font:700 .7rem/1.3 system-ui;color:var(--bg);background:var(--accent)}
#panel{inset:var(--top) auto var(--bottom) clamp(.5rem,var(--x),var(--width) - 24.5rem);width:24rem;max-height:min(75vh,var(--room));
overflow:auto;overscroll-behavior:contain;font-size:.94rem;line-height:1.4}
#panel,#menu{box-sizing:border-box;color:var(--notifier-color,CanvasText);background:var(--bg);
border:1px solid #8888;border-radius:.8rem;box-shadow:0 0 2rem #0004}
header,#removed{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;align-items:center;padding:.5rem;padding-inline-start:1rem;background:var(--bg)}
#removed{top:auto;bottom:0;border-top:1px solid #8885}
strong,#removed span,label span{flex:1;padding-block:.25rem}
#bar{display:flex;width:100%;margin-inline-start:-.5rem}
#all{margin-inline-start:auto}
header button,#more,#undo{padding:.5rem}
#all,#more,#undo,[aria-pressed=true]{color:var(--accent)}
[aria-pressed=true]{text-decoration:underline}
#more{display:block;margin:.3rem auto}
#note,label,#preferences p{padding:.7rem 1rem;margin:0}
li,label{display:flex;border-top:1px solid #8885}
li>:first-child{flex:1;padding-block:.7rem;padding-inline:1rem 0;border-radius:0;text-align:start;overflow-wrap:anywhere}
b,li span,label span{display:block}
li:not(.new) b{font-weight:400}
.new b:before{content:"● "/"";color:var(--accent)}
li span,time,small{opacity:.75;font-size:.85em}
.menu{padding:.7rem}
.menu:before{content:"⋯"/""}
img{float:inline-start;width:2rem;height:2rem;margin-inline-end:.7rem;object-fit:contain}
#menu{margin:0;padding:.3rem}
#menu button{display:block;width:100%;padding:.5rem 1rem;text-align:start}
i,#status{position:fixed;clip-path:inset(50%)}
#close{display:none}
@media(max-width:30rem),(max-height:24rem){#panel{inset:auto 0 0;width:auto;max-height:75vh}#close{display:block}}
@media(forced-colors:active){#badge{forced-color-adjust:none;color:HighlightText;background:Highlight}}
`.replace(/([\d.]+)rem/g, (_, size) => `${size * 16}px`);

const MARKUP = `<div id=root><button id=bell part=bell popovertarget=panel aria-expanded=false><slot><svg viewBox="0 0 24 24"
fill=none stroke=currentColor stroke-width=1.8><path d="M5 17c1-1 2-3 2-6a5 5 0 0 1 10 0c0 3 1 5 2 6zM10 20h4M12 3v3"/>
</svg></slot><span id=badge></span></button><div id=status role=status></div>
<div id=panel part=panel popover autofocus tabindex=-1 role=dialog aria-labelledby=title><header><strong id=title></strong>
<button id=settings></button><button id=close></button>
<div id=bar><button id=filter-all></button><button id=filter-unread></button><button id=all></button></div></header>
<div id=note></div><ul id=list role=list></ul><button id=more></button><div id=preferences></div>
<div id=removed><span id=deleted></span><button id=undo></button></div>
<div id=menu popover role=menu><button id=mark role=menuitem autofocus></button><button id=delete role=menuitem></button></div></div>
<template><li><button><img hidden alt=""><i></i> <b></b><span></span><time></time></button>
<button class=menu aria-haspopup=menu></button></li><label><span></span><small></small><input type=checkbox role=switch></label></template></div>`;

// Pages with Trusted Types allow no parser, so this reads as much HTML as there is above.
function build(root) {
	const path = [root];
	for (const [, end, name, attributes, text] of MARKUP.matchAll(/<(\/?)(\w+)([^>]*)>([^<]*)/g)) {
		if (end) path.shift();
		else {
			const element = document.createElementNS(`http://www.w3.org/${/svg|path/.test(name) ? "2000/svg" : "1999/xhtml"}`, name);
			for (const [, key, quoted, value = quoted ?? ""] of attributes.matchAll(/([\w-]+)(?:=(?:"([^"]*)"|([^\s"/]+)))?/g)) {
				element.setAttribute(key, value);
			}
			path[0].append(element);
			if (!/img|input|path/.test(name)) path.unshift(element.content ?? element);
		}
		if (text) path[0].append(text);
	}
}

/** Show pieces. A value may run in the other direction than the text around it. */
function put(element, pieces) {
	if (element.textContent == plain(pieces)) return;
	element.replaceChildren(...pieces.map((piece) =>
		piece.value == null ? piece : Object.assign(document.createElement("bdi"), { textContent: piece.value })));
}

/** Put the bell into `host`. `act` has what its buttons do, by their ids. */
export function view(host, text, act) {
	const root = host.attachShadow({ mode: "open" });
	build(root);
	adopted();
	const part = Object.fromEntries([...root.querySelectorAll("[id]")].map((element) => [element.id, element]));
	const { bell, panel, list, more, menu, mark } = part;
	const [row, toggle] = root.querySelector("template").content.children;
	let open = false, rows = new Map(), chosen, opener, next, last;

	const buttons = root.querySelectorAll("button[id]:not(#bell)");
	for (const button of buttons) {
		button.onclick = () => {
			if (button == more) next = list.children.length;
			menu.hidePopover();
			act[button.id](chosen);
		};
	}
	panel.onscroll = () => menu.hidePopover();
	panel.onbeforetoggle = ({ newState }) => {
		open = newState == "open";
		place();
		for (const type of ["scroll", "resize"]) (open ? addEventListener : removeEventListener)(type, place, true);
		bell.ariaExpanded = open;
		if (!open && root.activeElement) bell.focus();
		act.toggled(open);
	};
	menu.onkeydown = (event) => {
		const other = root.activeElement == mark ? part.delete : mark;
		({ ArrowDown: other, ArrowUp: other, Home: mark, End: part.delete })[event.key]?.focus();
		if (event.key == "Tab") event.preventDefault(menu.hidePopover());
	};
	menu.onbeforetoggle = ({ newState }) => { if (newState == "closed" && menu.contains(root.activeElement)) opener.focus(); };

	// A document takes no style sheets along from another one.
	function adopted() {
		const { defaultView } = host.ownerDocument;
		if (!defaultView) return;
		const sheet = new defaultView.CSSStyleSheet();
		sheet.replaceSync(CSS);
		root.adoptedStyleSheets = [sheet];
	}

	// Where an element is in the window, and the window's size, in the lengths of a bell that may be zoomed
	function measure(element) {
		const { innerWidth, innerHeight } = host.ownerDocument.defaultView, zoom = host.currentCSSZoom ?? 1;
		const { top, bottom, left, right } = element.getBoundingClientRect();
		const within = (length, most) => Math.min(Math.max(length, 0), most) / zoom;
		return {
			top: within(top, innerHeight), bottom: within(bottom, innerHeight), left: left / zoom, right: right / zoom,
			width: innerWidth / zoom, height: innerHeight / zoom,
		};
	}

	// below the bell or above it, and towards the middle of the window
	function place() {
		const { top, bottom, left, right, width, height } = measure(bell);
		const below = height - bottom, down = below > Math.min(top, 400);
		menu.hidePopover();
		panel.style = `--top:${down ? `${bottom}px` : "auto"};--bottom:${down ? "auto" : `${height - top}px`};--width:${width}px;`
			+ `--x:${left + right < width ? `${left}px` : `${right}px - 384px`};--room:${(down ? below : top) - 8}px`;
	}

	function openMenu(item, dots) {
		if (chosen?.id != item.id) menu.hidePopover();
		[chosen, opener] = [item, dots];
		mark.textContent = text(item.is_new ? "mark-read" : "mark-unread");
		const { bottom, left, right, width, height } = measure(dots);
		const side = getComputedStyle(host).direction == "rtl" ? `left:${left}px` : `right:${width - right}px`;
		menu.style = `inset:auto;top:${Math.min(bottom, height - 100)}px;${side}`;
	}

	// A row that leads somewhere is a real link.
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
		if (chosen?.id == item.id) chosen = item; // an open menu is about what the list says now
		main.onclick = main.onauxclick = (event) => event.button < 2 && act.select(item, url, event);
		flag.textContent = item.is_new ? text("new") : "";
		put(what, title);
		put(extra, body);
		const date = new Date(typeof item.timestamp == "number" ? item.timestamp * 1000 : NaN);
		if (!isNaN(date)) Object.assign(time, { dateTime: date.toISOString(), title: moment(item.timestamp), textContent: ago(item.timestamp) });
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

	// If what has the focus goes, the row that takes its place gets it.
	function show({ items, unread, left, note, filter, removed, kinds, settings }) {
		bell.ariaLabel = text("title") + (unread ? `, ${text("unread", unread)}` : "");
		part.badge.textContent = unread > 99 ? `${number(99)}+` : unread ? number(unread) : "";
		if (!open && items.length) return; // no row of a user who has left stays
		const held = root.activeElement, index = [...list.children].indexOf(held?.closest("li"));
		if (index >= 0) last = index;
		for (const element of [part.title, part.deleted, ...buttons]) if (element != mark) element.textContent = text(element.id);
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
		if (held && !(root.activeElement ?? held).checkVisibility()) (list.children[Math.min(last, items.length - 1)]?.firstChild ?? panel).focus();
	}

	return { show, part, toggle, adopted, say: (words) => { part.status.textContent = words; } };
}
