// How the bell stays up to date: by the stream, or by polls where there is none.
const SILENCE = 45e3; // ms

/** Return what keeps `sync` called while the page is visible. Each `start` begins anew, and ends what was under way. */
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
