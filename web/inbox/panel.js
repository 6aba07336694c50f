// The bell, and the frame of its panel. What is in the panel comes when somebody opens it.
import { number } from "./words.js";

// A page's styles end at #root: what it lets in are the page's colour, font family and visibility.
const STYLE = `
:host{display:inline-block;vertical-align:middle;min-width:44px;min-height:44px}
#root{all:initial;display:block;font:16px/1.25 system-ui}
#root{font-family:inherit;color:inherit;color-scheme:inherit;visibility:inherit;pointer-events:inherit}
:host,div,button{--bg:var(--notifier-background,Canvas);--accent:var(--notifier-accent,light-dark(#0b57d0,#8ab4f8))}
:host([hidden]),[hidden],#badge:empty{display:none!important}
button,a{font:inherit;color:inherit;background:none;border:0;border-radius:8px;cursor:pointer;text-decoration:none}
:is(button,a):hover{background:#8882}
:focus-visible{outline:2px solid;outline-offset:-2px}
#bell{display:flex;position:relative;padding:10px}
svg{display:block;width:24px;fill:none;stroke:currentColor;stroke-width:1.8}
#badge{position:absolute;top:2px;inset-inline-start:55%;min-width:.8em;padding:0 .3em;border-radius:1em;
font:700 11px/1.3 system-ui;color:var(--bg);background:var(--accent)}
#panel{inset:var(--top) auto var(--bottom) clamp(8px,var(--x),var(--width) - 392px);width:384px;max-height:min(75vh,var(--room));
overflow:auto;overscroll-behavior:contain;outline-offset:0;font-size:15px;line-height:1.4}
#panel,#menu{box-sizing:border-box;margin:0;padding:0;color:var(--notifier-color,CanvasText);background:var(--bg);
border:1px solid #8886;border-radius:12px;box-shadow:0 8px 32px #0004}
#panel:empty{height:220px}
#window{position:fixed;inset:0;visibility:hidden}
#status{position:fixed;clip-path:inset(50%)}
@media print{:host{display:none!important}}
@media(max-width:480px),(max-height:384px){#panel{inset:auto 0 0;width:auto;max-height:80vh}}
@media(forced-colors:active){#badge{forced-color-adjust:none;color:HighlightText;background:Highlight}}
`;

/** An element. Pages with Trusted Types allow no parser. */
export function make(name, attributes = {}, ...children) {
	const element = document.createElement(name);
	for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
	element.append(...children);
	return element;
}

export function icon(d) {
	const [svg, path] = ["svg", "path"].map((name) => document.createElementNS("http://www.w3.org/2000/svg", name));
	svg.setAttribute("viewBox", "0 0 24 24");
	svg.ariaHidden = true;
	path.setAttribute("d", d);
	svg.append(path);
	return svg;
}

const SAID = 2e4, GLANCE = 250; // ms
export const BELL = "M5 17c1-1 2-3 2-6a5 5 0 0 1 10 0c0 3 1 5 2 6zM10 20h4M12 3v3";

const markup = () => make("div", { id: "root" },
	make("button", { id: "bell", part: "bell", popovertarget: "panel", "aria-expanded": false },
		make("slot", {}, icon(BELL)), make("span", { id: "badge", part: "badge" })),
	make("div", { id: "status", role: "status" }),
	make("div", { id: "panel", part: "panel", popover: "", autofocus: "", tabindex: -1, role: "dialog" }),
);

/**
 * Where an element is in the window, and the size of that, in the lengths of the open panel. What engines say of pages
 * that are zoomed and scrolled differs, so it is compared with what they say of an element that fills the window.
 */
export function measure(panel, element) {
	const whole = panel.appendChild(make("i", { id: "window" })), { top, bottom, left, right } = element.getBoundingClientRect();
	const origin = whole.getBoundingClientRect(), { width, height } = getComputedStyle(whole);
	const wide = parseFloat(width), high = parseFloat(height), scale = wide / origin.width;
	whole.remove();
	const x = (at) => (at - origin.left) * scale, y = (at) => Math.min(Math.max((at - origin.top) * scale, 0), high);
	return { top: y(top), bottom: y(bottom), left: x(left), right: x(right), width: wide, height: high };
}

/** Put the bell into `host`. `act` has what the buttons of the panel do, by their ids. */
export function view(host, text, act) {
	const root = host.attachShadow({ mode: "open" });
	const styles = [STYLE];
	dress();
	root.append(markup());
	const part = Object.fromEntries([...root.querySelectorAll("[id]")].map((element) => [element.id, element]));
	const { bell, panel } = part;
	let open, last, content, coming, isOwn, said, placed, glances;

	// A document takes no style sheets along from another one.
	function dress() {
		const { defaultView } = host.ownerDocument;
		root.adoptedStyleSheets = defaultView ? styles.map((css) => {
			const sheet = new defaultView.CSSStyleSheet();
			sheet.replaceSync(css);
			return sheet;
		}) : [];
	}

	function prepare() {
		coming ??= Promise.all([import("./list.js"), import("./look.js"), import("./describe.js")]).then(([{ fill }, { INSIDE }]) => {
			styles.push(INSIDE);
			dress();
			content = fill(host, root, part, text, act);
			show(last);
		}, () => {
			coming = undefined; // the next list tries again
			panel.textContent = text("error");
		});
	}
	bell.onpointerenter = bell.onfocus = prepare;

	// A key is for the bell or for the page. A page sees only <notifier-inbox>, and would take it for one of its shortcuts.
	function keep(event) {
		const { type, key, ctrlKey, metaKey, altKey } = event;
		if (type == "keydown") isOwn = key != "Tab" && !(ctrlKey || metaKey || altKey) && (open || /^( |Enter)$/.test(key));
		if (isOwn) event.stopPropagation();
	}
	for (const type of ["keydown", "keypress", "keyup"]) root.addEventListener(type, keep);
	// Libraries for smooth scrolling, which replace what the wheel does, would scroll the page instead of the panel.
	for (const type of ["wheel", "touchmove"]) panel.addEventListener(type, (event) => event.stopPropagation(), { passive: true });

	panel.onbeforetoggle = ({ newState }) => toggle(newState == "open");

	function toggle(now) {
		open = now;
		if (open) requestAnimationFrame(place); // by then it is above the page, and can be measured
		clearInterval(glances);
		if (open) glances = setInterval(place, GLANCE); // a page that moves the bell does not say so
		for (const type of ["scroll", "resize"]) (open ? addEventListener : removeEventListener)(type, place, true);
		bell.ariaExpanded = open;
		if (!open && root.activeElement) bell.focus({ preventScroll: true });
		act.toggled(open);
		show(last);
	}

	// below the bell or above it, and towards the middle of the window
	function place() {
		if (!open) return;
		const { top, bottom, left, right, width, height } = measure(panel, bell);
		const below = height - bottom, down = below > Math.min(top, 400);
		const style = `--top:${down ? `${bottom}px` : "auto"};--bottom:${down ? "auto" : `${height - top}px`};--width:${width}px;`
			+ `--x:${left + right < width ? `${left}px` : `${right}px - 384px`};--room:${(down ? below : top) - 8}px`;
		if (style == placed) return;
		panel.style = placed = style;
		part.menu?.hidePopover();
	}

	function show(state) {
		last = state;
		const { unseen } = state;
		bell.ariaLabel = text("title") + (unseen ? `, ${text("arrived", unseen)}` : "");
		panel.ariaLabel = text("title");
		part.badge.textContent = unseen > 99 ? `${number(99)}+` : unseen ? number(unseen) : "";
		if (open) prepare();
		if (open) content?.show(state);
		else content?.clear();
	}

	// A screen reader hears only a bell that is rendered, and not the same text twice. What was said is not true for ever.
	function say(words) {
		const isHeard = (bell) => bell.shadowRoot && bell.checkVisibility();
		const speaker = [host, ...document.querySelectorAll(host.localName)].find(isHeard) ?? host;
		const status = speaker.shadowRoot.getElementById("status");
		status.replaceChildren(...(words ? [make("div", {}, words)] : []));
		clearTimeout(said);
		if (words) said = setTimeout(say, SAID);
	}

	// An element that leaves its page is closed without an event.
	return { show, part, say, adopted: dress, left: () => open && toggle(false) };
}
