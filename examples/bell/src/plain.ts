import { getToken } from "./session";

const inbox = document.querySelector("notifier-inbox")!;
inbox.getToken = getToken;
inbox.addEventListener("notification", ({ detail }) => console.info("new:", detail.key));
