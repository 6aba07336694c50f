// Types of <notifier-inbox>. Save this file among the sources of your page; see docs/bell.md.

/** A notification as `GET /list` returns it. Other programs may leave fields out of the documents that they write. */
export interface InboxNotification<Data = { [field: string]: unknown }> {
  id: string;
  /** Unix seconds */
  timestamp: number;
  is_new: boolean;
  user_id: string;
  key: string;
  target_id?: string;
  data?: Data;
}

/** What a row shows. What is left out is as without the function; `null` shows nothing. */
export interface InboxRow {
  title?: string | null;
  body?: string | null;
  /** http, https or relative; other addresses are ignored */
  url?: string | null;
  /** an emoji, or the address of a picture; as `url` */
  icon?: string | null;
}

/** The user has chosen a notification. `preventDefault()` keeps the browser from following its link. */
export interface NotifierSelectEvent extends CustomEvent<InboxNotification> {
  /** where the row leads, as it is written; a router takes it */
  readonly url?: string;
}

export interface NotifierInboxEventMap {
  notification: CustomEvent<InboxNotification>;
  "notifier-select": NotifierSelectEvent;
  /** the counts have changed, or are known now */
  "notifier-count": CustomEvent<InboxCounts>;
  "notifier-unauthorized": CustomEvent<null>;
}

export interface InboxCounts {
  unread: number;
  /** how many of the unread ones have come since the user last opened or closed the panel */
  unseen: number;
}

/** What `on` + the event's name of an element is. It may be set before the element's module has come. */
export type InboxHandlers<Element> = {
  [Type in keyof NotifierInboxEventMap as `on${Type}`]?: ((this: Element, event: NotifierInboxEventMap[Type]) => unknown) | null;
};

export interface NotifierInbox extends HTMLElement, InboxHandlers<NotifierInbox> {
  /** Says what a row shows. */
  format?: (notification: InboxNotification<any>) => InboxRow | null | undefined;
  /** Gives the user's token. It is asked before the first call, and again before the token expires. */
  getToken?: () => Promise<string | null | undefined>;
  /** how many notifications are unread */
  readonly unread: number;
  open(): void;
  close(): void;
  /** Asks for the inbox now. */
  refresh(): void;

  addEventListener<K extends keyof NotifierInboxEventMap>(
    type: K,
    listener: (this: NotifierInbox, event: NotifierInboxEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  addEventListener<K extends keyof HTMLElementEventMap>(
    type: K,
    listener: (this: NotifierInbox, event: HTMLElementEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof NotifierInboxEventMap>(
    type: K,
    listener: (this: NotifierInbox, event: NotifierInboxEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
  removeEventListener<K extends keyof HTMLElementEventMap>(
    type: K,
    listener: (this: NotifierInbox, event: HTMLElementEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** The attributes. */
export interface NotifierInboxAttributes {
  "user-id"?: string;
  token?: string;
  src?: string;
  poll?: number | string;
  settings?: boolean | "";
  "show-data"?: boolean | "";
  [text: `text-${string}`]: string | undefined;
  [label: `label-${string}`]: string | undefined;
  [url: `url-${string}`]: string | undefined;
}

declare global {
  interface HTMLElementTagNameMap {
    "notifier-inbox": NotifierInbox;
  }
}

// @ts-ignore - without React there is nothing to add to
type ReactAttributes = import("react").HTMLAttributes<NotifierInbox> & import("react").RefAttributes<NotifierInbox>;

/**
 * Where React hydrates what a server has rendered, it sets neither properties nor listeners of a custom element. Set both
 * in its `ref`, as docs/bell.md shows.
 */
type SetInRef = { [name in "format" | "getToken" | `on${keyof NotifierInboxEventMap}`]?: never };

// @ts-ignore - as above
declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "notifier-inbox": NotifierInboxAttributes & SetInRef & ReactAttributes;
    }
  }
}

// --- without the bell -------------------------------------------------------------------------------------

export interface InboxState {
  /** newest first; if `unreadOnly`, the unread ones */
  readonly items: readonly InboxNotification<any>[];
  readonly elements: number;
  readonly unread: number;
  readonly unseen: number;
  /** whether the service has older ones */
  readonly more: boolean;
  readonly unreadOnly: boolean;
  /** whether the service has answered yet */
  readonly loaded?: boolean;
  readonly fault?: "error" | "invalid" | "unauthorized" | "undone";
  /** the kinds, as `GET /kinds` returns them */
  readonly kinds?: { readonly [key: string]: { readonly [field: string]: unknown } };
}

export interface InboxClientEventMap {
  change: CustomEvent<null>;
  count: CustomEvent<InboxCounts>;
  notification: CustomEvent<InboxNotification<any>>;
  unauthorized: CustomEvent<null>;
}

export interface InboxClient {
  readonly state: InboxState;
  start(): void;
  stop(): void;
  refresh(): void;
  more(): Promise<void>;
  show(unreadOnly: boolean): Promise<void>;
  mark(item: InboxNotification<any>, isNew: boolean): Promise<void>;
  markAll(): Promise<void>;
  delete(item: InboxNotification<any>): Promise<void>;
  seen(): Promise<void>;

  addEventListener<K extends keyof InboxClientEventMap>(
    type: K,
    listener: (event: InboxClientEventMap[K]) => unknown,
    options?: boolean | AddEventListenerOptions,
  ): void;
  removeEventListener<K extends keyof InboxClientEventMap>(
    type: K,
    listener: (event: InboxClientEventMap[K]) => unknown,
    options?: boolean | EventListenerOptions,
  ): void;
}

/** What `/inbox/client.js` exports. */
export type CreateInbox = (options: {
  userId: string;
  getToken?: () => Promise<string | null | undefined>;
  token?: string;
  src?: string;
  poll?: number;
  unreadOnly?: boolean;
}) => InboxClient;
