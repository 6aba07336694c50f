// The bell as a component of React, for pages with a bundler. See docs/bell.md.
"use client";
import { createElement, useEffect, useImperativeHandle, useLayoutEffect, useRef } from "react";

/** @param {import("./react.d.ts").NotifierInboxProps} props */
export function NotifierInbox({ userId, getToken, format, onNotification, onCount, onSelect, onUnauthorized, ref, ...rest }) {
	const inbox = useRef(/** @type {import("./inbox.js").NotifierInbox | null} */ (null));
	useImperativeHandle(ref, () => /** @type {import("./inbox.js").NotifierInbox} */ (inbox.current), []);
	useLayoutEffect(() => { // React sets no properties on an element that a server has rendered
		Object.assign(/** @type {object} */ (inbox.current), {
			getToken,
			format,
			onnotification: onNotification,
			"onnotifier-count": onCount,
			"onnotifier-select": onSelect,
			"onnotifier-unauthorized": onUnauthorized,
		});
	});
	useEffect(() => { // not on a server, which has no custom elements
		import("./inbox.js");
	}, []);
	return createElement("notifier-inbox", { ...rest, "user-id": userId, ref: inbox });
}
