import { mount } from "svelte";
// @ts-ignore - the types of .svelte files need svelte-check
import App from "./Svelte.svelte";

mount(App, { target: document.getElementById("app")! });
