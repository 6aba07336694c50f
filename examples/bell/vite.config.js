import { readdirSync } from "node:fs";
import { svelte } from "@sveltejs/vite-plugin-svelte";
import vue from "@vitejs/plugin-vue";
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  plugins: [vue({ template: { compilerOptions: { isCustomElement: (tag) => tag === "notifier-inbox" } } }), svelte()],
  ssr: { noExternal: true },
  build: { rolldownOptions: { input: readdirSync(".").filter((name) => name.endsWith(".html")) } },
});
