export const SHEET = new CSSStyleSheet();
SHEET.replaceSync(`
:host{display:inline-block}
:host,div,button{--bg:var(--notifier-background,Canvas);--accent:var(--notifier-accent,light-dark(#0b57d0,#8ab4f8))}
:host([hidden]),[hidden],#note:empty,#badge:empty,li span:empty{display:none!important}
#panel,ul{margin:0;padding:0}
button,a{font:inherit;color:inherit;background:none;border:0;border-radius:.5rem;cursor:pointer;text-decoration:none}
:is(button,a):hover{background:#8882}
:focus-visible{outline:2px solid;outline-offset:-2px}
#bell{display:flex;position:relative;padding:.5rem}
svg{width:1.5em}
#badge{position:absolute;top:0;inset-inline-start:55%;min-width:.8em;padding:0 .3em;border-radius:1em;
font:700 .7rem/1.3 system-ui;color:var(--bg);background:var(--accent)}
#panel{inset:var(--top) auto var(--bottom) clamp(.5rem,var(--x),100vw - 24.5rem);width:24rem;max-height:min(75vh,var(--room));
overflow:auto;overscroll-behavior:contain;font-size:.94rem;line-height:1.4}
#panel,#menu{box-sizing:border-box;color:var(--notifier-color,CanvasText);background:var(--bg);
border:1px solid #8888;border-radius:.8rem;box-shadow:0 0 2rem #0004}
header,#deleted{position:sticky;top:0;z-index:1;display:flex;flex-wrap:wrap;align-items:center;padding:.5rem;padding-inline-start:1rem;background:var(--bg)}
#deleted{top:auto;bottom:0;border-top:1px solid #8885}
strong,#deleted span{flex:1}
#bar{display:flex;width:100%;margin-inline-start:-.5rem}
#all{margin-inline-start:auto}
header button,#more,#undo{padding:.5rem}
#all,#more,#undo,[aria-pressed=true]{color:var(--accent)}
[aria-pressed=true]{text-decoration:underline}
#more{display:block;margin:.3rem auto}
#note,label,#preferences p{padding:.7rem 1rem;margin:0}
li,label{display:flex;border-top:1px solid #8885}
li>:first-child{flex:1;padding-block:.7rem;padding-inline:1rem 0;border-radius:0;text-align:start;overflow-wrap:anywhere}
b,li span,label span{display:block}
li:not(.new) b{font-weight:400}
.new b:before{content:"● "/"";color:var(--accent)}
li span,time,small{opacity:.75;font-size:.85em}
.menu{padding:.7rem}
.menu:before{content:"⋯"/""}
img{float:inline-start;width:2rem;height:2rem;margin-inline-end:.7rem;object-fit:contain}
label span{flex:1}
#menu{margin:0;padding:.3rem}
#menu button{display:block;width:100%;padding:.5rem 1rem;text-align:start}
i,#status{position:fixed;clip-path:inset(50%)}
#close{display:none}
@media(max-width:30rem),(max-height:24rem){#panel{inset:auto 0 0;width:auto;max-height:75vh}#close{display:block}}
@media(forced-colors:active){#badge{forced-color-adjust:none;color:HighlightText;background:Highlight}}
`);
