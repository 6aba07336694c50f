// The documentation: Swagger UI for the service's own OpenAPI document.
const dark = matchMedia("(prefers-color-scheme: dark)");
const follow = () => document.documentElement.classList.toggle("dark-mode", dark.matches);
dark.addEventListener("change", follow);
follow();
document.getElementById("back").hidden = location.search !== "?demo"; // not every service has a demo page

SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  plugins: [
    // Swagger UI shows an answer when it has ended, and a stream does not end.
    () => ({ statePlugins: { spec: { wrapSelectors: { allowTryItOutFor: () => (_state, path) => path !== "/stream" } } } }),
  ],
});
