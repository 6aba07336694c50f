import { StrictMode, useState } from "react";
import { Bell } from "./Bell";

export function App() {
  const [page, navigate] = useState("/");
  return (
    <StrictMode>
      <Bell navigate={navigate} />
      <p id="page">{page}</p>
    </StrictMode>
  );
}
