// The bell as a component of Vue, for pages with a bundler. See docs/bell.md.
import { defineComponent, h, onMounted } from "vue";

export const NotifierInbox = defineComponent({
	name: "NotifierInbox",
	props: { src: { type: String, required: true }, userId: String, getToken: Function, format: Function },
	emits: ["notification", "count", "select", "unauthorized"],
	setup(props, { emit, slots }) {
		/** @param {"notification" | "count" | "select" | "unauthorized"} name */
		const pass = (name) => (/** @type {Event} */ event) => emit(name, event);
		const listeners = {
			onNotification: pass("notification"),
			"onNotifier-count": pass("count"),
			"onNotifier-select": pass("select"),
			"onNotifier-unauthorized": pass("unauthorized"),
		};
		onMounted(() => import("./inbox.js")); // not on a server, which has no custom elements
		return () => h("notifier-inbox", {
			src: props.src,
			"user-id": props.userId,
			".getToken": props.getToken,
			".format": props.format,
			...listeners,
		}, slots.default?.());
	},
});
