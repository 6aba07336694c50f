// Types of the bell as a component of Vue.
import type { DefineSetupFnComponent } from "vue";
import type { NotifierInbox as Inbox, NotifierInboxAttributes, NotifierInboxEventMap } from "./inbox.js";

export interface NotifierInboxProps extends Omit<NotifierInboxAttributes, "src" | "user-id"> {
  /** the service's address */
  src: string;
  userId?: string;
  getToken?: Inbox["getToken"];
  format?: Inbox["format"];
}

type Emits = {
  notification: (event: NotifierInboxEventMap["notification"]) => void;
  count: (event: NotifierInboxEventMap["notifier-count"]) => void;
  select: (event: NotifierInboxEventMap["notifier-select"]) => void;
  unauthorized: (event: NotifierInboxEventMap["notifier-unauthorized"]) => void;
};

/** The bell. All attributes of the element are attributes of the component, too; the element is its `$el`. */
export const NotifierInbox: DefineSetupFnComponent<NotifierInboxProps, Emits>;
