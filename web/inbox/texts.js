// The bell's own texts. An attribute `text-NAME` takes precedence. Other languages than English come when they are needed.
import { language, lookup, number, plural } from "./format.js";

const ENGLISH = {
	title: "Notifications", new: "Unread:", all: "Mark all as read", more: "Load more", "unread-other": "{} unread",
	empty: "Nothing here yet.", "empty-unread": "Nothing unread.", error: "No connection. Trying again.",
	undone: "That did not work.", unauthorized: "Please sign in again.", invalid: "This inbox cannot be shown.",
	"filter-all": "All", "filter-unread": "Unread", close: "Close", menu: "Actions", "mark-read": "Mark as read",
	"mark-unread": "Mark as unread", delete: "Delete", deleted: "Deleted.", undo: "Undo",
	settings: "Settings", emails: "E-mails about", required: "Always on",
};
const tables = { en: ENGLISH, ar: null, de: null, es: null, fr: null, ru: null, zh: null };

/** The built-in texts in a language. `came` is called if they come later. */
function builtIn(lang, came) {
	const tag = lookup(Object.fromEntries(Object.keys(tables).map((tag) => [tag, tag])), lang);
	if (tag && !tables[tag]) {
		tables[tag] = ENGLISH;
		import(`./languages/${tag}.js`).then((module) => { tables[tag] = module.default; came(); }, () => { tables[tag] = null; });
	}
	return tables[tag] ?? ENGLISH;
}

/** Return what gives a text by its name, in the language of the page. A count chooses the plural form. */
export const textsOf = (host, came) => (name, count) => {
	const lang = language(), table = builtIn(lang, came);
	const names = count == null ? [name] : [`${name}-${plural(count, lang)}`, `${name}-other`, name];
	const own = names.map((name) => host.getAttribute(`text-${name}`)).find((text) => text != null);
	const text = own ?? names.map((name) => table[name]).find(Boolean);
	return text.replace("{}", () => number(count, lang));
};
