import { StrictMode, useState } from "react";
import { createRoot } from "react-dom/client";
import type { InboxNotification, InboxRow, NotifierInbox, NotifierSelectEvent } from "./inbox";
import { getToken, user } from "./session";

const format = ({ key, data }: InboxNotification<{ amount?: number }>): InboxRow =>
  key === "invoice_paid" ? { title: `Счёт оплачен: ${data?.amount} €`, url: "/invoices" } : {};

function prepare(inbox: NotifierInbox | null) {
  if (inbox) Object.assign(inbox, { format, getToken });
}

function App() {
  const [page, setPage] = useState("/");

  function follow(event: NotifierSelectEvent) {
    if (!event.url) return;
    event.preventDefault(); // a router takes it from here
    setPage(event.url);
  }

  return (
    <>
      <notifier-inbox
        ref={prepare}
        user-id={user.id}
        label-order_shipped="Заказ {data.number} отправлен"
        url-order_shipped="/orders/{target_id}"
        text-empty="Тихо."
        onnotifier-select={follow}
      />
      <p id="page">{page}</p>
    </>
  );
}

createRoot(document.getElementById("app")!).render(<StrictMode><App /></StrictMode>);
