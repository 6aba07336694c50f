// The documentation: Swagger UI for the service's own OpenAPI document.
SwaggerUIBundle({
  url: "openapi.json",
  dom_id: "#docs",
  deepLinking: true,
  plugins: [
    // Swagger UI shows an answer when it has ended, and a stream does not end.
    () => ({ statePlugins: { spec: { wrapSelectors: { allowTryItOutFor: () => (_state, path) => path !== "/stream" } } } }),
  ],
});
