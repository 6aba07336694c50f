import { NotifierInbox } from "@notifier/inbox/react";
import { getToken, user } from "./session";

export function Bell({ navigate }: { navigate: (url: string) => void }) {
  return (
    <NotifierInbox
      src="https://notifications.example.com"
      userId={user.id}
      getToken={getToken}
      format={({ data, target_id }) => ({ title: `Order ${data.number} has left`, url: `/orders/${target_id}` })}
      onNotification={({ detail }) => console.info("new:", detail.key)}
      onSelect={(event) => {
        if (!event.url) return;
        event.preventDefault(); // the router takes it from here
        navigate(event.url);
      }}
    />
  );
}
