// How an open panel looks. Sizes are in px and in `em` of the panel, whatever the page's are.
export const INSIDE = `
h2,h3,ul,small{margin:0;padding:0;font:inherit}
.picture:empty,#note:not([class]),#note[class=""],h3:empty,li span:empty,bdi:empty,.count:empty{display:none}
#panel svg{width:20px;stroke-linecap:round;stroke-linejoin:round}
#panel{scroll-padding:104px 0 56px;text-align:start}
#panel button,label{min-height:44px}
#header{position:sticky;top:0;z-index:2;padding:4px 8px 0;background:var(--bg);border-bottom:1px solid #8884}
.bar{display:flex;align-items:center;min-height:44px}
h2{flex:1;padding-inline-start:8px;font-size:1.1em;font-weight:700}
.bar button{display:flex;align-items:center;justify-content:center;gap:6px;min-width:44px;white-space:nowrap}
#settings[aria-expanded=true]{color:var(--accent)}
[aria-pressed]{padding:0 8px;border-radius:8px 8px 0 0;box-shadow:inset 0 -2px transparent}
[aria-pressed=true]{font-weight:600;box-shadow:inset 0 -2px var(--accent)}
.count{padding:0 6px;border-radius:9px;font-size:.8em;font-weight:600;background:#8883}
[aria-pressed=true] .count{color:var(--bg);background:var(--accent)}
/* as much of its text as there is room for: the next line is out of sight */
#all{flex:1;flex-wrap:wrap;justify-content:end;height:44px;padding:0 8px;overflow:hidden;color:var(--accent);font-size:.9em}
#all svg{padding:12px 0}
#all span{line-height:44px}
.arrived{position:absolute;top:calc(100% + 8px);inset-inline:0;width:fit-content;margin:auto;padding:0 18px;border-radius:22px;
color:var(--bg);background:var(--accent);box-shadow:0 2px 10px #0005}
.arrived:hover{color:var(--bg);background:color-mix(in srgb,var(--accent),CanvasText 15%)}
ul{list-style:none}
li{position:relative;display:flex;flex-wrap:wrap;border-bottom:1px solid #8883}
li:last-child{border:0}
li[inert]{opacity:.5}
h3{box-sizing:border-box;flex:0 0 100%;padding:12px 16px 4px 24px;font-size:.82em;font-weight:600;color:color-mix(in srgb,currentColor 75%,transparent);background:var(--bg);text-align:-webkit-match-parent;text-align:match-parent}
h3:first-letter{text-transform:uppercase}
.main{display:flex;contain:paint;gap:12px;flex:1;min-width:0;padding:10px 0 12px;padding-inline-start:24px;text-align:start;border-radius:0}
.main:hover{background:none}
li:hover{background:#8881}
li:hover .menu{opacity:1}
.new{background:color-mix(in srgb,var(--accent) 7%,transparent)}
.text{flex:1;min-width:0;overflow-wrap:anywhere}
b,.body,small{display:block;text-align:-webkit-match-parent;text-align:match-parent}
b{font-weight:400}
.new b{font-weight:600}
.new .main:before{content:"●"/"";position:absolute;inset-inline-start:8px;color:var(--accent);font-size:11px;line-height:20px}
.body{display:-webkit-box;-webkit-box-orient:vertical;-webkit-line-clamp:3;overflow:hidden;opacity:.85;font-size:.93em}
small{font-size:.85em;opacity:.75;padding-top:2px}
.name:not(:empty)+time:not(:empty):before,.times:not(:empty):before{content:" · "/""}
.icon{display:none;flex:none;place-items:center;width:36px;height:36px;border-radius:50%;overflow:hidden;background:#8882;font-size:18px;line-height:1}
.pictured .icon{display:grid}
.icon svg{opacity:.6}
img:not([hidden])+svg{display:none}
img{width:100%;height:100%;object-fit:cover}
.menu{align-self:center;width:44px;height:44px;margin-inline-end:4px;padding:12px;opacity:.6}
.menu:is(:hover,:focus-visible){opacity:1}
#panel .menu svg{stroke-width:2.8}
#menu{margin:0;padding:4px;min-width:180px}
#menu button{display:block;width:100%;padding:0 16px;text-align:start}
#more{display:block;margin:4px auto 8px;padding:0 16px;color:var(--accent)}
#note{display:flex;align-items:center;gap:8px;padding:10px 16px}
#note.fault{background:#e8710022}
#note.middle{flex-direction:column;justify-content:center;gap:14px;min-height:200px;padding:24px;box-sizing:border-box;text-align:center}
.middle .picture{padding:14px;border-radius:50%;background:#8882}
#panel .middle svg{width:28px}
.loading:before{content:"";width:28px;height:28px;border:3px solid #8885;border-top-color:var(--accent);border-radius:50%}
@media(prefers-reduced-motion:no-preference){.loading:before{animation:turn 1s linear infinite}[role=switch]:before{transition:inset .15s}}
@keyframes turn{to{rotate:1turn}}
#removed{position:sticky;bottom:0;display:flex;align-items:center;padding:4px 8px;background:var(--bg);border-top:1px solid #8884}
#deleted{flex:1;padding-inline-start:8px}
#undo{padding:0 16px;color:var(--accent);font-weight:600}
#preferences{padding:8px 0}
#preferences p{margin:0;padding:8px 16px;font-size:.85em;font-weight:600;opacity:.75}
label{display:flex;align-items:center;gap:12px;box-sizing:border-box;padding:8px 16px;cursor:pointer}
label:hover{background:#8881}
[role=switch]{appearance:none;flex:none;position:relative;width:42px;height:24px;margin:0;border:2px solid #767676;border-radius:12px;cursor:pointer}
[role=switch]:before{content:"";position:absolute;inset-block:3px;inset-inline-start:3px;width:14px;border-radius:50%;background:#767676}
[role=switch]:checked{border-color:var(--accent);background:var(--accent)}
[role=switch]:checked:before{inset-inline-start:21px;background:var(--bg)}
[role=switch]:disabled{opacity:.5;cursor:default}
[role=switch]:focus-visible{outline-offset:2px}
i{position:absolute;clip-path:inset(50%)}
#close{display:none}
@media(max-width:480px),(max-height:384px){
#close{display:flex}
#panel{border-width:1px 0 0;border-radius:16px 16px 0 0;box-shadow:0 0 0 100vmax #0008;padding-bottom:env(safe-area-inset-bottom)}
#panel:before{content:"";position:fixed;inset:0;z-index:-1;touch-action:none}
}
@media(forced-colors:active){
[role=switch]{forced-color-adjust:none;border-color:CanvasText}
[role=switch]:before{background:CanvasText}
[role=switch]:checked{border-color:Highlight;background:Highlight}
[role=switch]:checked:before{background:HighlightText}
.new .main:before,[aria-pressed=true]{color:Highlight}
[aria-pressed=true]{border-bottom:2px solid}
.arrived,[aria-pressed=true] .count{forced-color-adjust:none;color:HighlightText;background:Highlight}
}
`;
