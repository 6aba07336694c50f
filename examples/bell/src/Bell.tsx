"use client"; // says to Next.js that this component also runs in the browser

import type { InboxNotification, InboxRow, NotifierInbox } from "./inbox";
import { getToken, user } from "./session";

const format = ({ key, data }: InboxNotification<{ amount?: number }>): InboxRow =>
  key === "invoice_paid" ? { title: `Счёт оплачен: ${data?.amount} €`, url: "/invoices" } : {};

export function Bell({ navigate }: { navigate: (url: string) => void }) {
  function prepare(inbox: NotifierInbox | null) {
    if (!inbox) return;
    inbox.format = format;
    inbox.getToken = getToken;
    inbox.onnotification = ({ detail }) => console.info("new:", detail.key);
    inbox["onnotifier-select"] = (event) => {
      if (!event.url) return;
      event.preventDefault(); // the router takes it from here
      navigate(event.url);
    };
  }

  return (
    <notifier-inbox
      ref={prepare}
      user-id={user.id}
      label-order_shipped="Заказ {data.number} отправлен"
      url-order_shipped="/orders/{target_id}"
      text-empty="Тихо."
    />
  );
}
