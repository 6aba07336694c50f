import { useState } from "react";
import { createRoot } from "react-dom/client";
import { Bell } from "./PackageBell";

function App() {
  const [page, navigate] = useState("/");
  return (
    <>
      <Bell navigate={navigate} />
      <p id="page">{page}</p>
    </>
  );
}

createRoot(document.getElementById("app")!).render(<App />);
