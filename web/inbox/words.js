// What the bell says. What others wrote ends as text, or as an address that was checked.
const PLACEHOLDER = /{([^{}|]+?)(?:, *(number|date|time|currency [A-Z]{3}))?(?:\|([^{}]*))?}/g;
const DAY = /^\d{4}-\d\d-\d\d$/, MOMENT = /^\d{4}-\d\d-\d\dT\d\d:\d\d\S*$/; // ISO 8601
const EMOJI = /^[\d#*]?[^\0-\xa8]+$/;
const LIMIT = 200, LONGEST = 4000; // of a value: what a reader takes for a character, and JavaScript
const ENGLISH = {
	title: "Notifications", new: "Unread:", all: "Mark all as read", more: "Load more", "unread-other": "{} unread",
	arrived: "{} new", loading: "Loading…", empty: "Nothing here yet.", "empty-unread": "Nothing unread.",
	error: "No connection. Trying again.", undone: "That did not work.", unauthorized: "Please sign in again.",
	invalid: "This inbox cannot be shown.", "filter-all": "All", "filter-unread": "Unread", close: "Close",
	menu: "Actions", "mark-read": "Mark as read", "mark-unread": "Mark as unread", delete: "Delete",
	deleted: "Deleted.", undo: "Undo", settings: "Settings", emails: "E-mails about", required: "Always on",
	after: "By e-mail, if unread after {}", together: "together in one",
};
const tables = { en: ENGLISH, ar: 0, de: 0, es: 0, fa: 0, fr: 0, he: 0, ja: 0, pt: 0, ru: 0, tr: 0, zh: 0, "zh-Hant": 0 };

const made = {};
export const intl = (type, lang, options) => (made[[type, lang, JSON.stringify(options)]] ??= new Intl[type](lang, options));
const scriptOf = (tag) => intl("Locale", tag).maximize().script;

// Some pages say `en_US`, or worse.
function language() {
	for (const tag of [document.documentElement.lang, navigator.language]) {
		try {
			return Intl.getCanonicalLocales(tag.replaceAll("_", "-"))[0];
		} catch {} // not a language
	}
	return "en";
}

// RFC 4647, section 3.4; and zh-TW is zh-Hant before it is zh
function lookup(table, lang) {
	const keys = Object.keys(table ?? {}), find = (tag) => keys.find((key) => key.toLowerCase() == tag.toLowerCase());
	for (let tag = lang; tag; tag = tag.replace(/(^|-)[^-]*$/, "")) {
		const found = find(tag.includes("-") ? tag : `${tag}-${scriptOf(lang)}`) ?? find(tag);
		if (found) return found;
	}
}

/** The language of the bell's own words, and of numbers and times beside them. */
export function spoken() {
	const lang = language();
	return lookup(tables, lang) ? lang : "en";
}

/** What gives the bell's own texts by name. `came` is called when a language has come. */
export const textsOf = (host, came) => (name, count) => {
	const lang = spoken(), tag = lookup(tables, lang);
	if (!tables[tag]) {
		tables[tag] = ENGLISH;
		import(`./languages/${tag}.js`).then((module) => came((tables[tag] = module.default)), () => { tables[tag] = 0; });
	}
	const names = count == null ? [name] : [`${name}-${intl("PluralRules", lang).select(count)}`, `${name}-other`, name];
	const find = (get) => names.map(get).find((text) => text != null);
	const text = find((name) => host.getAttribute(`text-${name}`)) ?? find((name) => tables[tag][name]);
	return count == null ? text : text.replace("{}", () => number(count));
};

export const number = (value, options, lang = spoken()) => intl("NumberFormat", lang, options).format(value);

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
