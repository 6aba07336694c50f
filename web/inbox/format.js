// Placeholders, numbers, dates and addresses. What others wrote ends as text, or as an address that was checked.

const PLACEHOLDER = /{([^{}|]+?)(?:, *(number|date|time))?(?:\|([^{}]*))?}/g;
const DAY = /^\d{4}-\d\d-\d\d$/, MOMENT = /^\d{4}-\d\d-\d\dT\d\d:\d\d\S*$/; // ISO 8601
const LIMIT = 200; // characters of a value
const UNITS = { year: 31536e3, month: 2592e3, day: 86400, hour: 3600, minute: 60 }; // seconds

const formatters = {};
const intl = (type, lang, options = {}) =>
	(formatters[[type, lang, JSON.stringify(options)]] ??= new Intl[type](lang, options)); // one is slow to make

/** The language of the page, or else of the browser, in a form that Intl takes. Some pages say `en_US`, or worse. */
export function language() {
	for (const tag of [document.documentElement.lang, navigator.language]) {
		try {
			return Intl.getCanonicalLocales(tag.replaceAll("_", "-"))[0];
		} catch {} // not a language
	}
	return "en";
}

/** The entry for a language, or for the one it is a form of: RFC 4647, section 3.4. */
export function lookup(table, tag) {
	const known = new Map(Object.entries(table ?? {}).map(([tag, value]) => [tag.toLowerCase(), value]));
	for (tag = tag.toLowerCase(); tag; tag = tag.replace(/(^|-)[^-]*$/, "")) if (known.has(tag)) return known.get(tag);
}

export const number = (value, lang, options) => intl("NumberFormat", lang, options).format(value);

export const plural = (count, lang) => intl("PluralRules", lang).select(count);

/** A moment, given in Unix seconds or in ISO 8601; undefined if it is none. */
export function moment(value, lang, type) {
	const date = new Date(typeof value == "number" ? value * 1000 : value), options = {};
	if (type != "time") options.dateStyle = "medium";
	if (type != "date" && !DAY.test(value)) options.timeStyle = "short";
	if (DAY.test(value)) options.timeZone = "UTC"; // the same day everywhere
	return isNaN(date) ? undefined : intl("DateTimeFormat", lang, options).format(date);
}

/** How long ago a moment was. */
export function ago(seconds, lang) {
	const age = Math.max(0, Date.now() / 1000 - seconds);
	const [unit, size] = Object.entries(UNITS).find(([, size]) => age >= size) ?? ["second", 60];
	return intl("RelativeTimeFormat", lang, { numeric: "auto" }).format(-Math.floor(age / size), unit);
}

/** A value as people read it. A plain number has no thousands separators, because it may be an order's. */
export function readable(value, lang, type) {
	const text =
		(/date|time/.test(type) || DAY.test(value) || MOMENT.test(value)) ? moment(value, lang, type)
		: typeof value == "number" || (type && !isNaN(value)) ? number(value, lang, { useGrouping: !!type, maximumFractionDigits: 9 })
		: typeof value == "object" ? JSON.stringify(value) : value;
	const characters = [...`${text ?? value}`];
	return characters.length > LIMIT ? `${characters.slice(0, LIMIT - 1).join("")}…` : characters.join("");
}

const valueAt = (item, path) =>
	path.split(".").reduce((value, name) => (Object.hasOwn(Object(value), name) ? value[name] : undefined), item);

/** A text in pieces: strings, and for each placeholder `{value}`, which may be in another script than the text. */
export function fill(text, item, lang) {
	const pieces = [];
	let end = 0;
	for (const { 0: match, 1: path, 2: type, 3: other, index } of text.matchAll(PLACEHOLDER)) {
		const value = valueAt(item, path), missing = value == null || value === "";
		pieces.push(text.slice(end, index));
		pieces.push(missing ? (other ?? "…") : { value: readable(value, lang, type ?? (path == "timestamp" ? "datetime" : undefined)) });
		end = index + match.length;
	}
	return [...pieces, text.slice(end)];
}

export const plain = (pieces) => pieces.map((piece) => piece.value ?? piece).join("");

/** An address that is relative, http or https; otherwise undefined. To a browser `\` is a `/`, and a tab is nothing. */
export function checked(url) {
	try {
		const safe = typeof url == "string" && !/^\/\/|[\\\0- \x7f]/.test(url) && /^https?:$/.test(new URL(url, document.baseURI).protocol);
		return url && safe ? url : undefined;
	} catch {}
}

/** An address with its placeholders filled; undefined if one is missing, or would lead to another path. */
export function address(template, item) {
	let whole = typeof template == "string";
	const url = whole && template.replace(PLACEHOLDER, (_, path, type, other) => {
		const value = valueAt(item, path) ?? other;
		whole &&= /^(string|number|boolean)$/.test(typeof value) && !/^\.{0,2}$/.test(value);
		return encodeURIComponent(`${value}`.toWellFormed());
	});
	return whole ? checked(url) : undefined;
}
