// The custom element <notifier-inbox>. See docs/bell.md.
import { createInbox } from "./inbox/client.js";
import { view } from "./inbox/panel.js";
import { textsOf } from "./inbox/words.js";

const UNDO = 6e3; // ms
const FILTER = "notifier-filter"; // in sessionStorage
const SHOWN = /^(text-|label-|url-|settings$|show-data$)/; // attributes that change what is drawn

// A page may have no storage.
function kept(...choice) {
	try {
		if (choice.length) [sessionStorage[FILTER]] = choice;
		return sessionStorage[FILTER];
	} catch {}
}

function bell(host) {
	let settings = false, switches, removed, said;
	const get = (name) => host.getAttribute(name);
	const text = textsOf(host, () => render());
	const inbox = createInbox({
		get userId() { return get("user-id"); },
		get token() { return get("token"); },
		get src() { return get("src"); },
		get poll() { return get("poll"); },
		get getToken() { return host.getToken && (() => host.getToken()); },
		unreadOnly: kept() == "unread",
	});
	const { show, part, say, adopted, left } = view(host, text, {
		select, settings: toggleSettings, toggled, undo: () => settle(false), delete: remove, close: () => part.panel.hidePopover(),
		all: inbox.markAll, mark: (item) => inbox.mark(item, !item.is_new), more: inbox.more,
		"filter-all": () => choose(false),
		"filter-unread": () => choose(true),
	});
	for (const name of ["notification", "notifier-count", "notifier-unauthorized", "notifier-select"]) {
		inbox.addEventListener(name.replace("notifier-", ""), ({ detail }) => emit(name, detail));
		host.addEventListener(name, (event) => host[`on${name}`]?.(event)); // as pages write for the events of other elements
	}
	inbox.addEventListener("change", render);
	inbox.addEventListener("notification", async ({ detail }) => {
		const { describe, plain } = await import("./inbox/describe.js").catch(() => ({}));
		const { kinds, unread } = inbox.state;
		if (describe) say(`${text("unread", unread)}: ${plain(describe(host, kinds, detail).title)}`);
	});
	function render() {
		const state = inbox.state, { elements, unread, unreadOnly, loaded, fault } = state;
		const nothing = unreadOnly ? "empty-unread" : "empty", empty = !settings && !(unreadOnly ? unread : elements);
		if (fault != said) say((said = fault) ? text(fault) : "");
		show({ ...state, note: fault || (empty ? (loaded ? nothing : "loading") : ""), removed, settings });
		if (settings) switches?.show(state.kinds);
	}

	function emit(type, detail, more = {}) {
		const event = new CustomEvent(type, { detail, bubbles: true, composed: true, cancelable: type == "notifier-select" });
		host.dispatchEvent(Object.assign(event, more));
		return event;
	}

	function select(item, url, click) {
		const elsewhere = click.button || click.ctrlKey || click.metaKey || click.shiftKey; // a link in another tab
		if (elsewhere && !url) return;
		const { defaultPrevented } = elsewhere ? {} : emit("notifier-select", item, { url });
		if (defaultPrevented) click.preventDefault();
		if (item.is_new) inbox.mark(item, false);
		if (defaultPrevented || (url && !elsewhere)) part.panel.hidePopover();
	}

	function remove(item) {
		settle(true);
		removed = { item, user: get("user-id"), timer: setInterval(expire, UNDO) };
		inbox.hide(item);
		inbox.state.fault || say(text("deleted"));
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
		if (forGood) inbox.delete(item, user);
		else inbox.hide(item, false), say("");
	}

	function choose(unreadOnly) {
		kept(unreadOnly ? "unread" : "all");
		inbox.show(unreadOnly);
	}

	async function toggleSettings() {
		settings = !settings;
		inbox.fail();
		if (!settings) return;
		const failed = () => inbox.fail("undone");
		try {
			const { preferences } = await import("./inbox/preferences.js");
			switches ??= preferences(host, part.preferences, { call: inbox.call, text, failed });
			await switches.load();
			render();
		} catch {
			failed();
		}
	}

	function toggled(open) {
		if (!open) {
			settings = false;
			settle(true);
		}
		render();
		if (open || inbox.state.unseen) inbox.seen(); // not what arrives as it closes
		inbox.retry();
	}

	function update(anew) {
		if (anew) {
			settle(true);
			switches = undefined;
			say("");
		}
		inbox.update(anew);
	}

	return { inbox, panel: part.panel, adopted, render, update, left, leave: () => settle(true) };
}

class NotifierInbox extends HTMLElement {
	static observedAttributes = ["user-id", "token", "src"];
	#bell = bell(this);
	#given = {};
	#left;

	connectedCallback() {
		for (const name of ["format", "getToken"]) { // a page may have set them before this module came
			const { [name]: value } = this;
			if (delete this[name] && value) this[name] = value;
		}
		const { inbox, render, leave } = this.#bell, { signal } = (this.#left = new AbortController());
		const seen = new MutationObserver((changes) => {
			if (changes.some(({ target, attributeName }) => target != this || SHOWN.test(attributeName))) render();
		});
		seen.observe(this, { attributes: true });
		seen.observe(document.documentElement, { attributeFilter: ["lang"] });
		signal.addEventListener("abort", () => seen.disconnect());
		addEventListener("pagehide", leave, { signal });
		inbox.start();
	}
	disconnectedCallback() {
		this.#left.abort();
		this.#bell.left();
		this.#bell.leave();
		this.#bell.inbox.stop();
	}
	connectedMoveCallback() {} // a move by `moveBefore` changes nothing
	adoptedCallback() { this.#bell.adopted(); }
	attributeChangedCallback(name, old, now) { this.#bell.update(name != "token" && old != now); }

	get format() { return this.#given.format; }
	set format(format) {
		this.#given.format = format;
		this.#bell.render();
	}
	get getToken() { return this.#given.getToken; }
	set getToken(getToken) {
		const { getToken: before } = this.#given;
		this.#given.getToken = getToken;
		if (!before) this.#bell.update(); // frameworks set a new function at each rendering
	}

	get unread() { return this.#bell.inbox.state.unread; }
	refresh() { this.#bell.inbox.refresh(); }
	open() { if (this.isConnected) this.#bell.panel.showPopover(); }
	close() { this.#bell.panel.hidePopover(); }
}

if (!("popover" in HTMLElement.prototype)) console.error("<notifier-inbox>: this browser is too old");
else customElements.get("notifier-inbox") ?? customElements.define("notifier-inbox", NotifierInbox);
