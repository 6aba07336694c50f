// The settings in the panel: which e-mails the user wants.
import { iconOf, nameOf } from "./describe.js";
import { newIcon, showIcon } from "./list.js";
import { make } from "./panel.js";
import { intl, spoken } from "./words.js";

const UNITS = { s: "second", m: "minute", h: "hour", d: "day" };

/** Return what shows a switch for each kind with e-mail, and loads their state. `failed` is told of a refused change. */
export function preferences(host, section, { call, text, failed }) {
	const heading = make("p", { dir: "auto" }), labels = {};
	let state = {}, changes = 0;
	section.replaceChildren(heading);

	async function ask(init) {
		const change = ++changes;
		const { data } = await (await call("preferences", {}, { ...init, signal: AbortSignal.timeout(15e3) })).json();
		if (change == changes) state = data;
	}

	async function change(kind, box, kinds) {
		const email = (state[kind].email = box.checked);
		try {
			const headers = { "Content-Type": "application/json" };
			await ask({ method: "POST", headers, keepalive: true, body: JSON.stringify({ [kind]: { email } }) });
		} catch {
			state[kind].email = !email;
			failed();
		}
		show(kinds);
	}

	// A language says either how long, or in how long.
	function when({ email_after: span, email_batch: batch } = {}) {
		const [, count, letter] = /^(\d+)([smhd])$/.exec(span) ?? [];
		if (!count) return [];
		const unit = UNITS[letter], lang = spoken();
		const after = text("after")
			.replace("{}", () => intl("NumberFormat", lang, { style: "unit", unit, unitDisplay: "long" }).format(count))
			.replace("{in}", () => intl("RelativeTimeFormat", lang).format(+count, unit));
		return batch ? [after, text("together")] : [after];
	}

	function newSwitch() {
		const words = make("span", { class: "text" }, make("span", { dir: "auto" }), " ", make("small", { dir: "auto" }));
		return section.appendChild(make("label", {}, newIcon(), words, make("input", { type: "checkbox", role: "switch" })));
	}

	function show(kinds) {
		let pictured = false;
		heading.textContent = text("emails");
		for (const [kind, { email, required }] of Object.entries(state)) {
			const [place, { children: [name, why] }, box] = (labels[kind] ??= newSwitch()).children;
			pictured = showIcon(place, iconOf(kinds?.[kind]?.icon)) || pictured;
			name.textContent = nameOf(host, kinds, kind);
			why.textContent = [...(required ? [text("required")] : []), ...when(kinds?.[kind])].join(" · ");
			Object.assign(box, { checked: email, disabled: required, onchange: () => change(kind, box, kinds) });
		}
		section.classList.toggle("pictured", pictured);
	}

	return { show, load: () => ask({}) };
}
