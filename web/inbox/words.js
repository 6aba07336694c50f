// What the bell says. What others wrote ends as text, or as an address that was checked.
const PLACEHOLDER = /{([^{}|]+?)(?:, *(number|date|time|currency [A-Z]{3}))?(?:\|([^{}]*))?}/g;
const DAY = /^\d{4}-\d\d-\d\d$/, MOMENT = /^\d{4}-\d\d-\d\dT\d\d:\d\d\S*$/; // ISO 8601
const LIMIT = 200; // characters of a value
const UNITS = { year: 31536e3, month: 2592e3, day: 86400, hour: 3600, minute: 60 }; // seconds
const ENGLISH = {
	title: "Notifications", new: "Unread:", all: "Mark all as read", more: "Load more", "unread-other": "{} unread",
	empty: "Nothing here yet.", "empty-unread": "Nothing unread.", error: "No connection. Trying again.",
	undone: "That did not work.", unauthorized: "Please sign in again.", invalid: "This inbox cannot be shown.",
	"filter-all": "All", "filter-unread": "Unread", close: "Close", menu: "Actions", "mark-read": "Mark as read",
	"mark-unread": "Mark as unread", delete: "Delete", deleted: "Deleted.", undo: "Undo",
	settings: "Settings", emails: "E-mails about", required: "Always on",
};
const tables = { en: ENGLISH, ar: 0, de: 0, es: 0, fr: 0, ru: 0, zh: 0 };

const made = {};
const intl = (type, lang, options) => (made[[type, lang, JSON.stringify(options)]] ??= new Intl[type](lang, options));

// Some pages say `en_US`, or worse.
export function language() {
	for (const tag of [document.documentElement.lang, navigator.language]) {
		try {
			return Intl.getCanonicalLocales(tag.replaceAll("_", "-"))[0];
		} catch {} // not a language
	}
	return "en";
}

// RFC 4647, section 3.4
function lookup(table, tag) {
	for (; tag; tag = tag.replace(/(^|-)[^-]*$/, "")) {
		const found = Object.keys(table ?? {}).find((known) => known.toLowerCase() == tag.toLowerCase());
		if (found) return found;
	}
}

/** What gives the bell's own texts by name. `came` is called when a language has come. */
export const textsOf = (host, came) => (name, count) => {
	const lang = language(), tag = lookup(tables, lang) ?? "en";
	if (!tables[tag]) {
		tables[tag] = ENGLISH;
		import(`./languages/${tag}.js`).then((module) => came((tables[tag] = module.default)), () => { tables[tag] = 0; });
	}
	const names = count == null ? [name] : [`${name}-${intl("PluralRules", lang).select(count)}`, `${name}-other`, name];
	const find = (get) => names.map(get).find((text) => text != null);
	return (find((name) => host.getAttribute(`text-${name}`)) ?? find((name) => tables[tag][name])).replace("{}", () => number(count));
};

export const number = (value, options) => intl("NumberFormat", language(), options).format(value);

// Unix seconds or ISO 8601
export function moment(value, type) {
	const date = new Date(typeof value == "number" ? value * 1000 : value), day = DAY.test(value), options = {};
	if (type != "time") options.dateStyle = "medium";
	if (type != "date" && !day) options.timeStyle = "short";
	if (day) options.timeZone = "UTC"; // the same day everywhere
	return isNaN(date) ? undefined : intl("DateTimeFormat", language(), options).format(date);
}

export function ago(seconds) {
	const age = Math.max(0, Date.now() / 1000 - seconds);
	const [unit, size] = Object.entries(UNITS).find(([, size]) => age >= size) ?? ["second", 60];
	return intl("RelativeTimeFormat", language(), { numeric: "auto" }).format(-Math.floor(age / size), unit);
}

// A plain number has no thousands separators, because it may be an order's.
function readable(value, type) {
	const text = /date|time/.test(type) || DAY.test(value) || MOMENT.test(value) ? moment(value, type)
		: typeof value == "number" || (type && !isNaN(value)) ? number(value, type?.startsWith("currency")
			? { style: "currency", currency: type.slice(9) } : { useGrouping: !!type, maximumFractionDigits: 9 })
		: typeof value == "object" ? JSON.stringify(value) : value;
	const characters = [...`${text ?? value}`];
	return characters.length > LIMIT ? `${characters.slice(0, LIMIT - 1).join("")}…` : characters.join("");
}

const valueAt = (item, path) =>
	path.split(".").reduce((value, name) => (Object.hasOwn(Object(value), name) ? value[name] : undefined), item);

/** A text in pieces: strings, and `{value}` for each placeholder. */
function fill(text, item) {
	const pieces = [];
	let end = 0;
	for (const { 0: match, 1: path, 2: type = path == "timestamp" && "datetime", 3: other = "…", index } of text.matchAll(PLACEHOLDER)) {
		const value = valueAt(item, path) ?? "";
		pieces.push(text.slice(end, index), value === "" ? other : { value: readable(value, type || undefined) });
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

const kindOf = (kinds, key) => (Object.hasOwn(Object(kinds), key) ? kinds[key] : {});

function labelOf(host, kinds, key) {
	const { label, labels } = kindOf(kinds, key);
	return host.getAttribute(`label-${key}`) ?? labels?.[lookup(labels, language())] ?? label;
}

/** The label of a kind, or else its name, in pieces. */
export function titleOf(host, kinds, key, item) {
	const label = labelOf(host, kinds, key);
	return label ? fill(`${label}`, item)
		: [readable(key ?? "").replaceAll("_", " ").replace(/^./u, (first) => first.toUpperCase())];
}

/** `{title, body, url, icon}` of a notification; title and body are in pieces. */
export function describe(host, kinds, item) {
	const { key, data } = item;
	const url = address(host.getAttribute(`url-${key}`) ?? kindOf(kinds, key).url, item);
	const shown = { title: titleOf(host, kinds, key, item), body: [], url };
	if (host.hasAttribute("show-data") && !labelOf(host, kinds, key)) {
		const pairs = Object.entries(data ?? {}).map((pair) => pair.map((part) => readable(part ?? "")).join(": "));
		shown.body = [{ value: readable(pairs.join(" · ")) }];
	}
	try {
		for (const [name, value] of Object.entries(host.format?.(item) ?? {})) {
			if (value === undefined) continue;
			shown[name] = /url|icon/.test(name) ? checked(value) : value == null ? [] : [{ value: readable(value) }];
		}
	} catch (error) {
		console.error(error);
	}
	return shown;
}
