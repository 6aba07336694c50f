import { svelte } from "@sveltejs/vite-plugin-svelte";
import vue from "@vitejs/plugin-vue";
import { defineConfig } from "vite";

export default defineConfig({
  base: "./",
  plugins: [vue({ template: { compilerOptions: { isCustomElement: (tag) => tag === "notifier-inbox" } } }), svelte()],
  ssr: { noExternal: true },
  build: { rolldownOptions: { input: ["plain.html", "react.html", "svelte.html", "vue.html"] } },
});
