"""How the dashboard looks: Gradio's theme, and the style of what the pages draw themselves, light and dark."""

from __future__ import annotations

import gradio as gr

_SANS = ["Inter", "ui-sans-serif", "system-ui", "-apple-system", "Segoe UI", "Roboto", "DejaVu Sans", "sans-serif"]
_MONO = ["ui-monospace", "SFMono-Regular", "Menlo", "Consolas", "DejaVu Sans Mono", "monospace"]


def theme() -> gr.themes.Base:
    """Quiet greys, one blue for what can be acted on; no font is fetched from anywhere."""
    return gr.themes.Base(
        primary_hue="blue",
        neutral_hue="slate",
        font=_SANS,
        font_mono=_MONO,
        radius_size="md",
        text_size="md",
        spacing_size="md",
    ).set(
        body_background_fill="#f6f7f9",
        body_background_fill_dark="#0f141b",
        background_fill_primary="#ffffff",
        background_fill_primary_dark="#171e27",
        background_fill_secondary="#f6f7f9",
        background_fill_secondary_dark="#0f141b",
        body_text_color="#1a2230",
        body_text_color_dark="#e6eaf0",
        body_text_color_subdued="#566072",
        body_text_color_subdued_dark="#a3afc0",
        border_color_primary="#dde2e9",
        border_color_primary_dark="#2b3644",
        block_background_fill="#ffffff",
        block_background_fill_dark="#171e27",
        block_border_color="#dde2e9",
        block_border_color_dark="#2b3644",
        block_label_text_color="#566072",
        block_label_text_color_dark="#a3afc0",
        block_title_text_color="#3a4456",
        block_title_text_color_dark="#c4cdd9",
        block_title_text_size="*text_sm",
        block_shadow="none",
        input_background_fill="#ffffff",
        input_background_fill_dark="#121820",
        input_border_color="#c9d0da",
        input_border_color_dark="#364353",
        button_primary_background_fill="#1d5fbf",
        button_primary_background_fill_dark="#2f74d8",
        button_primary_background_fill_hover="#174e9e",
        button_primary_text_color="#ffffff",
        button_secondary_background_fill="#ffffff",
        button_secondary_background_fill_dark="#1e2733",
        button_secondary_border_color="#c9d0da",
        button_secondary_border_color_dark="#364353",
        button_secondary_text_color="#1a2230",
        button_secondary_text_color_dark="#e6eaf0",
    )


CSS = """
:root{--v-ink:#1a2230;--v-mute:#566072;--v-line:#dde2e9;--v-soft:#eef1f5;--v-card:#fff;--v-acc:#1d5fbf;--v-accs:#e6effb;
--v-ok:#1a7a4c;--v-oks:#e2f4ea;--v-bad:#b3261e;--v-bads:#fbe9e7;--v-warn:#8a5a00;--v-warns:#fdf3dc;
--v-tuned:#1d5fbf;--v-kept:#d5dae2;--v-gone:#fbe3d6;--v-gonex:#b8430c;--v-heat:13,79,168;
--v-s0:#0072b2;--v-s1:#d55e00;--v-s2:#009e73;--v-s3:#b5528b;--v-s4:#b97f00;--v-s5:#3a9bd0;--v-s6:#6b4fa0;--v-s7:#6f7887}
.dark{--v-ink:#e6eaf0;--v-mute:#a3afc0;--v-line:#2b3644;--v-soft:#1f2834;--v-card:#171e27;--v-acc:#7db4ff;
--v-accs:#1b2d47;--v-ok:#6fd3a0;--v-oks:#14301f;--v-bad:#ff9d94;--v-bads:#3a1a17;--v-warn:#f0c368;--v-warns:#33270d;
--v-tuned:#5b9df5;--v-kept:#3a4554;--v-gone:#43271a;--v-gonex:#ff9a66;--v-heat:125,180,255;
--v-s0:#56a8e0;--v-s1:#f08a3c;--v-s2:#35c796;--v-s3:#e08fbf;--v-s4:#e6b030;--v-s5:#8fd0f2;--v-s6:#b39ae0;--v-s7:#9aa5b5}
.gradio-container{max-width:1320px!important;margin:0 auto!important}
.gradio-container,.gradio-container .main,.gradio-container main,.gradio-container .tabs{
min-width:0!important;max-width:100%}
gradio-app{min-width:0;width:100%}.gradio-container .main>.wrap{min-width:0;width:100%}.gradio-container{width:100%}
.gradio-container .html-container{padding:0!important}
.gradio-container .v-empty-ok:not(:has(.v-note,.v-card,.v-fold,.v-stat)){display:none}
.v-stack{display:grid;gap:14px;min-width:0}.v-stack>*{min-width:0}
.v-fold{background:var(--v-card);border:1px solid var(--v-line);border-radius:12px;padding:11px 16px}
.v-fold summary{cursor:pointer;font-size:14px;font-weight:560;color:var(--v-ink)}
.v-fold[open] summary{margin-bottom:12px}
.v-top{align-items:flex-end!important}
.v-head{display:flex;flex-wrap:wrap;gap:4px 14px;align-items:baseline;padding:2px 2px 0}
.v-head h1{font-size:22px;font-weight:650;letter-spacing:-.01em;margin:0;color:var(--v-ink)}
.v-head p{margin:0;color:var(--v-mute);font-size:13.5px;overflow-wrap:anywhere}
.v-card{background:var(--v-card);border:1px solid var(--v-line);border-radius:12px;padding:16px 18px;min-width:0}
.v-card h3{font-size:15.5px;font-weight:620;margin:0;color:var(--v-ink)}
.v-sub{color:var(--v-mute);font-size:13px;line-height:1.45;margin:3px 0 12px!important}
.v-grid2{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,420px),1fr));gap:16px}
.v-stats{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,215px),1fr));gap:12px}
.v-stat{background:var(--v-card);border:1px solid var(--v-line);border-radius:12px;padding:12px 15px;min-width:0}
.v-stat dt{font-size:12.5px;color:var(--v-mute);margin:0 0 3px}
.v-stat dd{margin:0;font-size:18px;font-weight:640;color:var(--v-ink);overflow-wrap:anywhere;line-height:1.25}
.v-stat dd small{display:block;font-size:12.5px;font-weight:400;color:var(--v-mute);margin-top:3px;line-height:1.4}
.v-stat.v-lead{border-color:var(--v-acc);box-shadow:inset 3px 0 0 var(--v-acc)}
.v-note{border-radius:10px;padding:13px 16px;border:1px solid var(--v-line);background:var(--v-soft);color:var(--v-ink)}
.v-note p{margin:3px 0 0!important;font-size:14px;overflow-wrap:anywhere}
.v-note.v-error{background:var(--v-bads);border-color:var(--v-bad)}
.v-note.v-error strong{color:var(--v-bad)}
.v-note.v-warn{background:var(--v-warns);border-color:var(--v-warn)}
.v-meta{color:var(--v-mute);font-size:13px;line-height:1.5;margin:0!important;overflow-wrap:anywhere}
.v-scroll{overflow-x:auto;-webkit-overflow-scrolling:touch}
.v-table{border-collapse:collapse;width:100%;font-size:13.5px;color:var(--v-ink);font-variant-numeric:tabular-nums}
.v-table th,.v-table td{padding:7px 9px;text-align:right;border:0;border-bottom:1px solid var(--v-line);white-space:nowrap}
.v-table th:first-child,.v-table td:first-child,.v-table .v-l{text-align:left}
.v-table thead th{white-space:normal!important;min-width:62px;font-weight:560;color:var(--v-mute);font-size:12.5px;vertical-align:bottom;background:var(--v-card)}
.v-table thead button{all:unset;cursor:pointer;border-radius:5px;padding:2px 4px;margin:-2px -4px}
.v-table thead button:hover{color:var(--v-acc)}
.v-table button:focus-visible,.v-cell:focus-visible,.v-point:focus-visible,.v-pager button:focus-visible{
outline:2px solid var(--v-acc)!important;outline-offset:1px}
.v-table tbody tr:hover{background:var(--v-soft)}
.v-table tbody tr[aria-selected=true]{background:var(--v-accs);box-shadow:inset 3px 0 0 var(--v-acc)}
.v-table .v-pickname{all:unset;cursor:pointer;font-weight:560;color:var(--v-acc)}
.v-table .v-pickname:hover{text-decoration:underline}
.v-table .v-wrap{white-space:normal;min-width:180px;overflow-wrap:anywhere}
.v-table small{color:var(--v-mute);font-size:12px}
.v-tag{display:inline-block;font-size:11.5px;font-weight:560;border-radius:20px;padding:1px 8px;margin-left:7px;
background:var(--v-soft);color:var(--v-mute);vertical-align:1px}
.v-tag.v-best{background:var(--v-oks);color:var(--v-ok)}.v-tag.v-tie{background:var(--v-accs);color:var(--v-acc)}
.v-tag.v-failed{background:var(--v-bads);color:var(--v-bad)}.v-tag.v-training,.v-tag.v-evaluating{background:var(--v-accs);
color:var(--v-acc)}.v-tag.v-finished,.v-tag.v-trained{background:var(--v-oks);color:var(--v-ok)}
.v-pager{display:flex;gap:8px 12px;align-items:center;justify-content:space-between;flex-wrap:wrap;margin-top:10px;
font-size:13px;color:var(--v-mute)}
.v-pager button,.v-btn{font:inherit;cursor:pointer;border:1px solid var(--v-line);background:var(--v-card);
color:var(--v-ink);border-radius:7px;padding:4px 12px}
.v-pager button:disabled{opacity:.45;cursor:default}
.v-bar{height:7px;border-radius:4px;background:var(--v-soft);overflow:hidden;min-width:90px}
.v-bar i{display:block;height:100%;background:var(--v-acc);border-radius:4px}
.v-chart{min-width:0}.v-ylabel,.v-xlabel{font-size:12.5px;color:var(--v-mute)}
.v-ylabel{margin-bottom:9px}.v-xlabel{text-align:center;margin-top:2px}
.v-frame{display:grid;grid-template-columns:44px 1fr;grid-template-rows:var(--h) 22px;padding-right:12px}
.v-plot{position:relative;border-left:1px solid var(--v-mute);border-bottom:1px solid var(--v-mute)}
.v-svg{position:absolute;inset:0;width:100%;height:100%;overflow:visible}
.v-svg polyline{fill:none;stroke-width:2;stroke-linejoin:round}.v-svg rect{opacity:.16}
.v-yticks,.v-xticks{position:relative;font-size:12px;color:var(--v-mute);font-variant-numeric:tabular-nums}
.v-xticks{grid-column:2}
.v-yticks span{position:absolute;right:8px;transform:translateY(50%)}
.v-xticks span{position:absolute;top:4px;transform:translateX(-50%);white-space:nowrap}
.v-grid{position:absolute;left:0;right:0;height:0;border-top:1px solid var(--v-line)}
.v-ref{position:absolute;left:0;right:0;height:0;border-top:1.5px dashed var(--v-mute)}
.v-ref b{position:absolute;right:4px;bottom:2px;font:500 11.5px/1.2 inherit;font-style:normal;color:var(--v-mute)}
.v-dot{position:absolute;width:8px;height:8px;border-radius:50%;transform:translate(-50%,50%);
box-shadow:0 0 0 2px var(--v-card)}
.v-point{all:unset;position:absolute;width:11px;height:11px;border-radius:50%;transform:translate(-50%,50%);cursor:pointer;
background:color-mix(in srgb,var(--c) 55%,transparent);border:1.5px solid var(--c);box-sizing:border-box}
.v-point::after{content:"";position:absolute;inset:-7px;border-radius:50%}
.v-point:hover{transform:translate(-50%,50%) scale(1.35)}
.v-point.v-front{background:var(--c);width:13px;height:13px;box-shadow:0 0 0 2px var(--v-card)}
.v-point.v-chosen{box-shadow:0 0 0 3px var(--v-card),0 0 0 5px var(--v-ink);z-index:3}
.v-key{display:flex;flex-wrap:wrap;gap:4px 16px;font-size:12.5px;color:var(--v-ink);margin-top:10px}
.v-key span{display:inline-flex;align-items:center;gap:6px}
.v-key i{display:inline-block;width:13px;height:13px;border-radius:3px;flex:none}
.v-map{border-collapse:separate;border-spacing:2px 3px;width:100%;min-width:640px;table-layout:fixed;font-size:12.5px;
color:var(--v-ink)}
.v-map th,.v-map td{padding:0;border:0;font-weight:400}
.v-map th[scope=row]{width:188px;text-align:left;white-space:nowrap;overflow:hidden;text-overflow:ellipsis;
position:sticky;left:0;background:var(--v-card);z-index:1;padding-right:8px}
.v-map thead th:first-child{width:188px;text-align:left}.v-map thead th:last-child{width:52px;text-align:right}
.v-map td.v-num{width:52px;text-align:right;font-variant-numeric:tabular-nums;background:none}
.v-map thead th{font-size:10.5px;color:var(--v-mute);text-align:center;font-variant-numeric:tabular-nums}
.v-map td{height:19px;border-radius:3px;text-align:center;line-height:19px;font-size:12px;background:var(--v-kept)}
.v-map .v-t{background:var(--v-tuned)}
.v-map .v-x{background:var(--v-gone);color:var(--v-gonex);font-weight:700}
.v-map .v-tx{background:repeating-linear-gradient(45deg,var(--v-tuned) 0 3px,var(--v-gone) 3px 6px)}
.v-map tr[aria-selected=true] th{font-weight:650;color:var(--v-acc)}
.v-swatch-t{background:var(--v-tuned)}.v-swatch-k{background:var(--v-kept)}.v-swatch-x{background:var(--v-gone);
color:var(--v-gonex);font:700 11px/13px monospace;text-align:center;font-style:normal}
.v-pairs{display:grid;grid-template-columns:max-content 1fr;gap:5px 16px;font-size:13.5px;margin:0;color:var(--v-ink)}
.v-pairs dt{color:var(--v-mute)}.v-pairs dd{margin:0;overflow-wrap:anywhere;font-variant-numeric:tabular-nums}
.v-code{background:var(--v-soft);border:1px solid var(--v-line);border-radius:8px;padding:10px 12px;margin:0;
white-space:pre-wrap;overflow-wrap:anywhere;font-size:13px;color:var(--v-ink)}
.v-answers{display:grid;grid-template-columns:repeat(auto-fit,minmax(min(100%,240px),1fr));gap:12px}
.v-answer{border:1px solid var(--v-line);border-radius:10px;padding:12px 14px;min-width:0}
.v-answer.v-right{border-color:var(--v-ok);box-shadow:inset 3px 0 0 var(--v-ok)}
.v-answer.v-wrong{border-color:var(--v-bad);box-shadow:inset 3px 0 0 var(--v-bad)}
.v-answer h4{margin:0 0 6px;font-size:12.5px;font-weight:560;color:var(--v-mute);overflow-wrap:anywhere}
.v-answer p{margin:0!important;font-size:16px;color:var(--v-ink);white-space:pre-wrap;overflow-wrap:anywhere}
.v-question{font-size:17px;font-weight:560;color:var(--v-ink);white-space:pre-wrap;overflow-wrap:anywhere;margin:0 0 12px!important}
.v-cells{display:grid;grid-template-columns:repeat(auto-fill,minmax(44px,1fr));gap:6px}
.v-cell{font:inherit;font-size:13px;cursor:pointer;border:1px solid var(--v-line);border-radius:7px;background:var(--v-soft);
color:var(--v-ink);height:44px;padding:0;font-variant-numeric:tabular-nums;position:relative;overflow:hidden}
.v-cell[aria-pressed=true]{background:var(--v-tuned);border-color:var(--v-tuned);color:#fff;font-weight:650}
.dark .v-cell[aria-pressed=true]{color:#0b1420}
.v-cell i{position:absolute;left:0;right:0;bottom:0;height:4px;background:rgba(var(--v-heat),var(--a))}
.v-heat td{background:rgba(var(--v-heat),var(--a))}
.v-heat td.v-num{background:none}
.v-matrix td{text-align:center!important;background:rgba(var(--v-heat),var(--a))}
.v-matrix td.v-on{color:#fff}.dark .v-matrix td.v-on{color:#0b1420}
.v-hidden{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%);white-space:nowrap}
@media (max-width:640px){.gradio-container .main{padding:10px!important}.v-map thead th:first-child{width:118px}
.v-card{padding:13px 12px}
.v-map th[scope=row]{width:118px}.v-stat dd{font-size:16.5px}
#sweep-board .v-table td:first-child,#sweep-board .v-table th:first-child{position:sticky;left:0;background:var(--v-card);
z-index:1;max-width:168px;min-width:168px;white-space:normal;overflow-wrap:anywhere}
.v-stats{grid-template-columns:1fr 1fr;gap:8px}.v-stat{padding:10px 11px}.v-stat dd{font-size:15px}
.v-pairs{grid-template-columns:minmax(0,42%) 1fr}}
@media (prefers-reduced-motion:no-preference){.v-bar i{transition:width .4s}.v-point{transition:transform .12s}}
"""
