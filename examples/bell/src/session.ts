export const user = { id: "638f394d4b7243fc0399ea67" };

/** Asks your own backend for a token of the user who is signed in. */
export async function getToken(): Promise<string> {
  const reply = await fetch("/notifier-token");
  if (!reply.ok) throw new Error(`no token: ${reply.status}`);
  return reply.text();
}
