// Requests to the service, with the user's token.
const HOME = import.meta.url.replace(/[^/]*\/[^/]*$/, ""); // by `new URL("..")` a bundler would look for a file
const TOKEN = /^\s*[!-\xff]+\s*$/; // a sign-in page is none
const TIMEOUT = 15e3, MARGIN = 60e3, PAUSE = 5e3; // ms

// ms; NaN if a token (RFC 7519) does not say
function expiry(token) {
	try {
		return JSON.parse(atob(token.split(".")[1].replaceAll("-", "+").replaceAll("_", "/"))).exp * 1000;
	} catch {
		return NaN;
	}
}

/** A signal that ends with this one, or when the service takes too long. `AbortSignal.any` is too new. */
export function within(signal) {
	const ended = new AbortController(), end = () => ended.abort();
	setTimeout(end, TIMEOUT);
	if (signal?.aborted) end();
	signal?.addEventListener("abort", end, { signal: ended.signal });
	return ended.signal;
}

/** What addresses and calls the service. `refused(user)` is told of a 401 and a 403. */
export function requests(options, refused) {
	let given = {}; // by getToken

	async function ask(known) {
		const late = new Promise((_, reject) => setTimeout(reject, TIMEOUT));
		try {
			known.token = await Promise.race([options.getToken(), late]);
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
		if (!options.getToken) return options.token;
		const known = given;
		if (!(Date.now() < known.renew)) await (known.asking ??= ask(known).finally(() => { known.asking = null; }));
		return known.token;
	}

	const at = (path) => new URL(path, new URL(options.src ?? HOME, document.baseURI));

	async function call(path, query, { user = options.userId, again, ...init } = {}) {
		const known = given, sent = await token();
		const url = at(`${path}?${new URLSearchParams({ ...query, user_id: user })}`);
		const headers = sent ? { ...init.headers, Authorization: `Bearer ${sent}` } : init.headers;
		const isNone = sent ? !TOKEN.test(sent) : options.getToken;
		const reply = isNone ? { status: 401 } : await fetch(url, { ...init, headers });
		if (reply.ok) return reply;
		if (/40[13]/.test(reply.status) && sent == (options.getToken ? given.token : options.token)) {
			known.renew = 0;
			if (options.getToken && sent && !again) return call(path, query, { ...init, user, again: true });
			refused(user);
		}
		throw reply;
	}

	return { at, call, forget: () => { given = {}; }, renewsIn: () => Math.max(1000, (given.renew ?? Infinity) - Date.now()) };
}

// How a bell stays up to date: by the stream, or by polls where there is none.
const SILENCE = 45e3; // ms

/** The lines of a body, as they come. */
async function* linesOf(body) {
	const reader = body.pipeThrough(new TextDecoderStream()).getReader();
	let rest = "";
	for (let chunk; !(chunk = await reader.read()).done; ) {
		const [lines] = /[^]*[\r\n]|/.exec((rest += chunk.value));
		rest = rest.slice(lines.length);
		yield lines;
	}
}

/**
 * What calls `sync` while the page is visible. `start` begins anew. Of the bells of a browser with one inbox, one holds
 * a lock and keeps the stream; the others hear of it by a channel. Where a page has neither, each bell leads.
 */
export function live(options, { at, call, changed, current, heard, learn, listed, renewsIn, stopped, sync, tell }) {
	let timer, channel, retry = 2000;
	const link = { run: new AbortController(), fails: 0, streams: undefined, leads: false, start, post, leave };
	// A framework hydrates what a server has rendered; then the page is idle.
	const settled = new Promise((done) => {
		const idle = () => (globalThis.requestIdleCallback ?? ((next) => setTimeout(next)))(done, { timeout: 2000 });
		if (document.readyState == "complete") idle();
		else addEventListener("load", idle);
	});

	function again(wait) {
		clearTimeout(timer);
		timer = setTimeout(run, Math.min(wait, SILENCE));
	}

	function start(wait) {
		link.run.abort();
		link.streams = true;
		again(+wait || 0);
	}

	function leave() {
		link.run.abort();
		clearTimeout(timer);
		part();
	}

	// --- the other bells

	function join(name) {
		if (channel || !navigator.locks || !globalThis.BroadcastChannel) return;
		try {
			channel = new BroadcastChannel(name);
			channel.onmessage = listen;
		} catch {} // Firefox refuses where a user blocks cookies
	}

	function part() {
		channel?.close();
		channel = undefined;
	}

	function post(ids, data, first) {
		channel?.postMessage({ ids, data, first });
	}

	function listen({ data: { data, first, ids } }) {
		heard(ids);
		if (link.leads || link.run.signal.aborted) return;
		again(SILENCE);
		if (data) follow(data, first);
		else changed();
	}

	/** Wait until this bell leads, which it then does for as long as the signal allows. */
	const lead = (name, signal) => new Promise((resolve) => {
		const hold = () => new Promise((release) => {
			resolve();
			if (signal.aborted) return release();
			link.leads = true;
			signal.addEventListener("abort", () => { release(link.leads = false); });
		});
		if (!channel) return hold();
		navigator.locks.request(name, { signal }, hold).catch(() => {
			if (!signal.aborted) part();
			hold();
		});
	});

	// --- the service

	// The first event of a stream says only what the list has said, unless something has changed in between.
	function follow(data, first) {
		let state = {};
		try {
			state = JSON.parse(data);
		} catch {} // `sync` will say
		return first && current(state) ? undefined : sync();
	}

	async function stream(signal) {
		const expect = () => signal.aborted || again(Math.min(SILENCE, renewsIn()));
		let first = true;
		expect();
		const { body, headers } = await call("stream", {}, { signal });
		if (!/event-stream/.test(headers.get("Content-Type"))) throw { status: 404 }; // a proxy sends its own page
		for await (const lines of linesOf(body)) {
			retry = /^retry: ?(\d{3,})/m.exec(lines)?.[1] ?? retry;
			link.fails = 0;
			const data = lines.match(/(?<=^data:).*/gm)?.at(-1);
			post(listed(), data, first);
			if (data) {
				await follow(data, first);
				first = false;
			}
			changed();
			expect();
		}
		signal.throwIfAborted();
		again(retry * (1 + Math.random()));
	}

	function poll() {
		link.fails = 0;
		post(listed(), "poll");
		again((+options.poll || 15) * 1e3);
	}

	async function connect(signal) {
		if (!options.getToken && !options.token) await settled; // a later script of the page may set it
		signal.throwIfAborted();
		const name = `notifier ${options.userId} ${at("")}`;
		learn();
		join(name);
		await sync();
		signal.throwIfAborted();
		again(SILENCE);
		await lead(name, signal);
		signal.throwIfAborted();
		tell();
		await (link.streams ? stream(signal) : poll());
	}

	function run() {
		link.run.abort();
		if (stopped()) return;
		document.addEventListener("visibilitychange", start, { once: true });
		if (document.hidden || !options.userId) return;
		const { signal } = (link.run = new AbortController());
		connect(signal).catch(({ status }) => {
			if (signal.aborted) return;
			if (/40[45]|501/.test(status)) link.streams = false;
			again(1000 * 2 ** link.fails++ * (1 + Math.random()));
		});
	}

	return link;
}
