// What a row says.
import { address, ago, checked, fill, language, lookup, moment, plain, readable } from "./format.js";

/** The label of a kind as the page or the service gives it, with its placeholders. */
export function labelOf(host, kinds, key) {
	const { label, labels } = Object.hasOwn(Object(kinds), key) ? kinds[key] : {};
	return [host.getAttribute(`label-${key}`), lookup(labels, language()), label].find((text) => typeof text == "string");
}

/** The label of a kind with `item` in its placeholders, in pieces; without a label, the kind's name. */
export function titleOf(host, kinds, key, item) {
	const label = labelOf(host, kinds, key), lang = language();
	return label ? fill(label, item, lang)
		: [readable(key ?? "", lang).replaceAll("_", " ").replace(/^./u, (first) => first.toUpperCase())];
}

/** Return `{title, body, url, icon}` of a notification; title and body are in pieces. `host.format` takes precedence. */
export function describe(host, kinds, item) {
	const { key, data } = item, lang = language();
	const shown = {
		title: titleOf(host, kinds, key, item),
		body: [],
		url: address(host.getAttribute(`url-${key}`) ?? kinds?.[key]?.url, item),
	};
	if (host.hasAttribute("show-data") && !labelOf(host, kinds, key)) {
		const pairs = Object.entries(data ?? {}).map((pair) => pair.map((part) => readable(part ?? "", lang)).join(": "));
		shown.body = [{ value: readable(pairs.join(" · "), lang) }];
	}
	try {
		for (const [name, value] of Object.entries(host.format?.(item) ?? {})) {
			if (value === undefined) continue;
			shown[name] = /url|icon/.test(name) ? checked(value) : value == null ? [] : [{ value: readable(value, lang) }];
		}
	} catch (error) {
		console.error(error);
	}
	return shown;
}

/** Show pieces; a value is isolated, because it may run in the other direction than the text around it. */
export function put(element, pieces) {
	if (element.textContent == plain(pieces)) return;
	element.replaceChildren(...pieces.map((piece) =>
		piece.value == null ? piece : Object.assign(document.createElement("bdi"), { textContent: piece.value })));
}

/** Show how long ago a notification came; the moment is in its title. */
export function putTime(element, seconds) {
	const date = new Date(typeof seconds == "number" ? seconds * 1000 : NaN);
	if (isNaN(date)) return element.replaceChildren();
	element.dateTime = date.toISOString();
	element.title = moment(seconds, language());
	element.textContent = ago(seconds, language());
}
