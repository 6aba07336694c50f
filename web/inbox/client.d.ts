import type { CreateInbox } from "../inbox.js";

export const createInbox: CreateInbox;
