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
  /** the address of a picture; as `url` */
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
  "notifier-unauthorized": CustomEvent<null>;
}

export interface NotifierInbox extends HTMLElement {
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

// @ts-ignore - as above
declare module "react" {
  namespace JSX {
    interface IntrinsicElements {
      "notifier-inbox": NotifierInboxAttributes & Pick<NotifierInbox, "format" | "getToken"> & ReactAttributes & {
        onnotification?: (event: NotifierInboxEventMap["notification"]) => void;
        "onnotifier-select"?: (event: NotifierSelectEvent) => void;
        "onnotifier-unauthorized"?: (event: NotifierInboxEventMap["notifier-unauthorized"]) => void;
      };
    }
  }
}
