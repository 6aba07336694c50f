// The languages of the bell, and its own words in them.
const ENGLISH = {
	title: "Notifications", new: "Unread:", all: "Mark all as read", more: "Load more", "unread-other": "{} unread",
	arrived: "{} new", loading: "Loading…", empty: "Nothing here yet.", "empty-unread": "Nothing unread.",
	error: "No connection. Trying again.", undone: "That did not work.", unauthorized: "Please sign in again.",
	invalid: "This inbox cannot be shown.", "filter-all": "All", "filter-unread": "Unread", close: "Close",
	menu: "Actions", "mark-read": "Mark as read", "mark-unread": "Mark as unread", delete: "Delete",
	deleted: "Deleted.", undo: "Undo", settings: "Settings", emails: "E-mails about", required: "Always on",
	after: "By e-mail, if unread after {}", together: "together in one",
};
// Each import has a line of its own, as bundlers follow only what they can read.
const LANGUAGES = {
	en: undefined, // it is here
	ar: () => import("./languages/ar.js"),
	de: () => import("./languages/de.js"),
	es: () => import("./languages/es.js"),
	fa: () => import("./languages/fa.js"),
	fr: () => import("./languages/fr.js"),
	he: () => import("./languages/he.js"),
	ja: () => import("./languages/ja.js"),
	pt: () => import("./languages/pt.js"),
	ru: () => import("./languages/ru.js"),
	tr: () => import("./languages/tr.js"),
	zh: () => import("./languages/zh.js"),
	"zh-Hant": () => import("./languages/zh-Hant.js"),
};
const tables = { en: ENGLISH }; // those that have come

const made = {};
export const intl = (type, lang, options) => (made[[type, lang, JSON.stringify(options)]] ??= new Intl[type](lang, options));
export const scriptOf = (tag) => (made[tag] ??= new Intl.Locale(tag).maximize().script);

// Some pages say `en_US`, or worse.
export function language() {
	for (const tag of [document.documentElement.lang, navigator.language]) {
		try {
			return Intl.getCanonicalLocales(tag.replaceAll("_", "-"))[0];
		} catch {} // not a language
	}
	return "en";
}

// RFC 4647, section 3.4; and zh-TW is zh-Hant before it is zh
export function lookup(table, lang) {
	const keys = Object.keys(table ?? {}), find = (tag) => keys.find((key) => key.toLowerCase() == tag.toLowerCase());
	for (let tag = lang; tag; tag = tag.replace(/(^|-)[^-]*$/, "")) {
		const found = find(tag.includes("-") ? tag : `${tag}-${scriptOf(lang)}`) ?? find(tag);
		if (found) return found;
	}
}

/** The language of the bell's own words, and of numbers and times beside them. */
export function spoken() {
	const lang = language();
	return lookup(LANGUAGES, lang) ? lang : "en";
}

/** What gives the bell's own texts by name. `came` is called when a language has come. */
export const textsOf = (host, came) => (name, count) => {
	const lang = spoken(), tag = lookup(LANGUAGES, lang);
	if (!tables[tag]) {
		tables[tag] = ENGLISH;
		LANGUAGES[tag]().then((module) => came((tables[tag] = module.default)), () => { tables[tag] = 0; });
	}
	const names = count == null ? [name] : [`${name}-${intl("PluralRules", lang).select(count)}`, `${name}-other`, name];
	const find = (get) => names.map(get).find((text) => text != null);
	const text = find((name) => host.getAttribute(`text-${name}`)) ?? find((name) => tables[tag][name]);
	return count == null ? text : text.replace("{}", () => number(count));
};

export const number = (value, options, lang = spoken()) => intl("NumberFormat", lang, options).format(value);
