// Requests to the service, with the user's token.
const TIMEOUT = 15e3, MARGIN = 60e3, PAUSE = 5e3; // ms

// ms; NaN if a token (RFC 7519) does not say
function expiry(token) {
	try {
		return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).exp * 1000;
	} catch {
		return NaN;
	}
}

/** What addresses and calls the service. `refused(user)` is told of a 401 and a 403. */
export function requests(host, refused) {
	const get = (name) => host.getAttribute(name);
	let given = {}; // by getToken

	async function ask(known) {
		const late = new Promise((_, reject) => setTimeout(reject, TIMEOUT));
		try {
			known.token = await Promise.race([host.getToken(), late]);
			known.expires = expiry(known.token);
			const life = known.expires - Date.now();
			// A new token that has expired means that the clock is wrong. The service will say if it has.
			known.renew = life > 0 ? known.expires - Math.min(MARGIN, life / 5) : known.token && Infinity;
		} catch (error) {
			if (!(Date.now() < known.expires)) throw error;
			known.renew = Date.now() + PAUSE;
		}
	}

	async function token() {
		if (!host.getToken) return get("token");
		const known = given;
		if (!(Date.now() < known.renew)) await (known.asking ??= ask(known).finally(() => { known.asking = null; }));
		return known.token;
	}

	const at = (path) => new URL(path, new URL(get("src") ?? new URL("..", import.meta.url), document.baseURI));

	async function call(path, query, { user = get("user-id"), again, ...init } = {}) {
		const known = given, sent = await token();
		const url = at(`${path}?${new URLSearchParams({ ...query, user_id: user })}`);
		const headers = sent ? { ...init.headers, Authorization: `Bearer ${sent}` } : init.headers;
		const reply = host.getToken && !sent ? { status: 401 } : await fetch(url, { ...init, headers });
		if (reply.ok) return reply;
		if (/40[13]/.test(reply.status) && sent == (host.getToken ? given.token : get("token"))) {
			known.renew = 0;
			if (host.getToken && sent && !again) return call(path, query, { ...init, user, again: true });
			refused(user);
		}
		throw reply;
	}

	return { at, call, forget: () => { given = {}; }, renewsIn: () => Math.max(1000, (given.renew ?? Infinity) - Date.now()) };
}

// How the bell stays up to date: by the stream, or by polls where there is none.
const SILENCE = 45e3; // ms

/** What calls `sync` while the page is visible. `start` begins anew. */
export function live(host, { call, learn, render, renewsIn, sync, stopped }) {
	let timer, retry = 2000;
	const link = { run: new AbortController(), fails: 0, streams: undefined, start };
	const parsed = new Promise((done) => {
		if (document.readyState == "complete") return done();
		document.addEventListener("DOMContentLoaded", done);
		addEventListener("load", done);
	});

	function again(wait) {
		clearTimeout(timer);
		timer = setTimeout(connect, Math.min(wait, SILENCE));
	}

	function start(wait) {
		link.run.abort();
		link.streams = true;
		again(+wait || 0);
	}

	async function connect() {
		link.run.abort();
		if (!host.isConnected) return;
		document.addEventListener("visibilitychange", start, { once: true });
		if (document.hidden || !host.getAttribute("user-id") || stopped()) return;
		const { signal } = (link.run = new AbortController());
		if (!host.getToken && !host.getAttribute("token")) await parsed; // a later script of the page may set it
		if (signal.aborted) return;
		let pause, rest = "";
		learn();
		try {
			await sync();
			if (signal.aborted) return;
			if (!link.streams) {
				link.fails = 0;
				return again((+host.getAttribute("poll") || 15) * 1e3);
			}
			again(Math.min(SILENCE, renewsIn()));
			const { body } = await call("stream", {}, { signal }), reader = body.pipeThrough(new TextDecoderStream()).getReader();
			for (let chunk; !(chunk = await reader.read()).done; signal.aborted || again(Math.min(SILENCE, renewsIn()))) {
				const lines = /[^]*[\r\n]|/.exec((rest += chunk.value))[0];
				rest = rest.slice(lines.length);
				retry = /^retry: ?(\d{3,})/m.exec(lines)?.[1] ?? retry;
				link.fails = 0;
				if (/^data/m.test(lines)) await sync();
				render();
			}
		} catch ({ status }) {
			if (signal.aborted) return;
			if (/40[45]|501/.test(status)) link.streams = false;
			pause = 1000 * 2 ** link.fails++;
		}
		signal.aborted || again((pause ?? retry) * (1 + Math.random()));
	}

	return link;
}
