import { createApp } from "vue";
// @ts-ignore - the types of .vue files need vue-tsc
import App from "./PackageBell.vue";

createApp(App).mount("#app");
