// The settings in the panel: which e-mails the user wants.
import { plain, titleOf } from "./words.js";

/** Return what shows a switch for each kind with e-mail, and loads their state. `failed` is told of a refused change. */
export function preferences(host, section, sample, { call, text, failed }) {
	const heading = document.createElement("p"), labels = {};
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

	function show(kinds) {
		heading.textContent = text("emails");
		for (const [kind, { email, required }] of Object.entries(state)) {
			const label = (labels[kind] ??= section.appendChild(sample.cloneNode(true))), [name, why, box] = label.children;
			name.textContent = plain(titleOf(host, kinds, kind, {}));
			why.textContent = required ? text("required") : "";
			Object.assign(box, { checked: email, disabled: required, onchange: () => change(kind, box, kinds) });
		}
	}

	return { show, load: () => ask({}) };
}
