// Types of the bell as a component of React.
import type { HTMLAttributes, ReactElement, Ref } from "react";
import type { NotifierInbox as Inbox, NotifierInboxAttributes, NotifierInboxEventMap } from "./inbox.js";

type Handler<Type extends keyof NotifierInboxEventMap> = (event: NotifierInboxEventMap[Type]) => unknown;

export interface NotifierInboxProps
  extends Omit<NotifierInboxAttributes, "src" | "user-id">, Omit<HTMLAttributes<Inbox>, "onSelect"> {
  /** the service's address */
  src: string;
  userId?: string;
  getToken?: Inbox["getToken"];
  format?: Inbox["format"];
  onNotification?: Handler<"notification">;
  onCount?: Handler<"notifier-count">;
  onSelect?: Handler<"notifier-select">;
  onUnauthorized?: Handler<"notifier-unauthorized">;
  ref?: Ref<Inbox>;
}

/** The bell. All attributes of the element are props, too. */
export function NotifierInbox(props: NotifierInboxProps): ReactElement;
