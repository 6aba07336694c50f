// What a notification says. What others wrote ends as text, or as an address that was checked.
import { intl, language, lookup, number, scriptOf, spoken } from "./words.js";

const PLACEHOLDER = /{([^{}|]+?)(?:, *(number|date|time|currency [A-Z]{3}))?(?:\|([^{}]*))?}/g;
const DAY = /^\d{4}-\d\d-\d\d$/, MOMENT = /^\d{4}-\d\d-\d\dT\d\d:\d\d\S*$/; // ISO 8601
const EMOJI = /^[\d#*]?[^\0-\xa8]+$/;
const LIMIT = 200, LONGEST = 4000; // of a value: what a reader takes for a character, and JavaScript

// Unix seconds or ISO 8601; not the 30th of February, which JavaScript takes for a day in March
export function moment(value, type, lang = spoken()) {
	const date = new Date(typeof value == "number" ? value * 1000 : value), day = DAY.test(value), options = {};
	const written = `${value}`.slice(0, 10);
	if (isNaN(date) || (typeof value == "string" && DAY.test(written) && !new Date(written).toJSON()?.startsWith(written))) return;
	if (type != "time") options.dateStyle = "medium";
	if (type != "date" && !day) options.timeStyle = "short";
	if (day) options.timeZone = "UTC"; // the same day everywhere
	return intl("DateTimeFormat", lang, options).format(date);
}

// A text cut where a character ends: 👩🏽‍🚀 is one, and so is é with its accent apart.
function cut(text) {
	if (text.length <= LIMIT) return text;
	const start = text.slice(0, LONGEST), characters = [...intl("Segmenter").segment(start)];
	if (start == text && characters.length <= LIMIT) return text;
	return `${text.slice(0, characters.at(Math.min(LIMIT, characters.length) - 1).index)}…`;
}

// A plain number has no thousands separators, because it may be an order's.
function readable(value, type, lang) {
	const text = /date|time/.test(type) || DAY.test(value) || MOMENT.test(value) ? moment(value, type, lang)
		: typeof value == "number" || (type && !isNaN(value)) ? number(value, type?.startsWith("currency")
			? { style: "currency", currency: type.slice(9) } : { useGrouping: !!type, maximumFractionDigits: 9 }, lang)
		: typeof value == "object" ? JSON.stringify(value) : value;
	return cut(`${text ?? value}`);
}

const valueAt = (item, path) =>
	path.split(".").reduce((value, name) => (Object.hasOwn(Object(value), name) ? value[name] : undefined), item);

/** A text in pieces: strings, and `{value}` for each placeholder. */
function fill(text, item, lang) {
	const pieces = [];
	let end = 0;
	for (const { 0: match, 1: path, 2: type = path == "timestamp" && "datetime", 3: other = "…", index } of text.matchAll(PLACEHOLDER)) {
		const value = valueAt(item, path) ?? "";
		pieces.push(text.slice(end, index), value === "" ? other : { value: readable(value, type || undefined, lang) });
		end = index + match.length;
	}
	return [...pieces, text.slice(end)];
}

export const plain = (pieces) => pieces.map((piece) => piece.value ?? piece).join("");

// To a browser `\` is a `/`, and a tab is nothing.
function checked(url) {
	try {
		if (/^\/\/|[\\\0- \x7f]/.test(url) || !/^https?:$/.test(new URL(url, document.baseURI).protocol)) return;
		return typeof url == "string" && url ? url : undefined;
	} catch {}
}

// A value that is missing, or would lead to another path, makes no address.
function address(template, item) {
	let whole = typeof template == "string";
	const url = whole && template.replace(PLACEHOLDER, (_, path, type, other) => {
		const value = valueAt(item, path) ?? other;
		whole &&= !/^(object|undefined)$/.test(typeof value) && !/^\.{0,2}$/.test(value);
		return encodeURIComponent(`${value}`.toWellFormed());
	});
	return whole ? checked(url) : undefined;
}

/** An emoji, or the address of a picture. */
export const iconOf = (icon) => (EMOJI.test(icon) ? { emoji: icon, icon: undefined } : { icon: checked(icon) });

const kindOf = (kinds, key) => (Object.hasOwn(Object(kinds), key) ? kinds[key] : {});

// A text and its language. One that does not say its language is in the page's, unless that has other letters.
function choose(text, texts) {
	const lang = language(), tag = lookup(texts, lang);
	if (tag) return [texts[tag], lang];
	const latin = text && /^\P{L}*\p{Script=Latin}/u.test(`${text}`.replace(PLACEHOLDER, ""));
	return [text, latin && scriptOf(lang) != "Latn" ? "en" : lang];
}

function labelOf(host, kinds, key) {
	const own = host.getAttribute(`label-${key}`), { label, labels } = kindOf(kinds, key);
	return own == null ? choose(label, labels) : [own, language()];
}

/** What settings call a kind. */
export function nameOf(host, kinds, key) {
	const { name, names } = kindOf(kinds, key);
	return choose(name, names)[0] ?? plain(titleOf(host, kinds, key, {}).title);
}

/** The label of a kind, or else its name, in pieces; and its language. */
function titleOf(host, kinds, key, item) {
	const { name, names } = kindOf(kinds, key);
	for (const [text, lang] of [labelOf(host, kinds, key), choose(name, names)]) {
		if (text) return { title: fill(`${text}`, item, lang), lang };
	}
	const words = readable(key ?? "").replaceAll("_", " ").replace(/^./u, (first) => first.toUpperCase());
	return { title: [words], lang: choose(words)[1] };
}

/** `{title, body, name, url, icon, emoji, lang}` of a notification; title and body are in pieces. */
export function describe(host, kinds, item) {
	const { key, data } = item, { icon, name, names } = kindOf(kinds, key);
	const shown = { body: [], icon, ...titleOf(host, kinds, key, item) };
	shown.url = address(host.getAttribute(`url-${key}`) ?? kindOf(kinds, key).url, item);
	if (host.hasAttribute("show-data") && !labelOf(host, kinds, key)[0]) {
		const pairs = Object.entries(data ?? {}).map((pair) => pair.map((part) => readable(part ?? "")).join(": "));
		shown.body = [{ value: readable(pairs.join(" · ")) }];
	}
	try {
		for (const [name, value] of Object.entries(host.format?.(item) ?? {})) {
			if (value === undefined) continue;
			if (name == "title") shown.lang = language();
			shown[name] = name == "url" ? checked(value) : name == "icon" ? value : value == null ? [] : [{ value: readable(value) }];
		}
	} catch (error) {
		console.error(error);
	}
	[shown.name] = choose(name, names);
	Object.assign(shown, iconOf(shown.icon));
	if (shown.name == plain(shown.title)) shown.name = undefined;
	return shown;
}
