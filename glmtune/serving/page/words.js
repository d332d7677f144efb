// What the page says, in English and Chinese. Elements name their words, so that they can be said again in the other.

const STORED = "glmtune.language";

const WORDS = {
  en: {
    skip: "Skip to the question",
    new: "New chat",
    menu: "Menu",
    language: "中文",
    dark: "Dark",
    light: "Light",
    first: "First model",
    second: "Second model, beside it",
    alone: "Compare with …",
    conversation: "Conversation",
    key: "API key",
    use: "Use",
    "key-note": "It stays in this tab and is forgotten with it.",
    "change-key": "API key …",
    empty: "Type a question below.",
    "empty-draw": "Type a question below, or draw a problem: answers to problems are marked.",
    question: "Question",
    draw: "Draw",
    "draw-note": "Draw a problem of arithmetic and ask it",
    send: "Send",
    stop: "Stop",
    keys: "Enter sends, Shift+Enter starts a new line, Esc stops.",
    again: "Ask again",
    edit: "Edit",
    settings: "Settings",
    temperature: "Temperature",
    top_p: "Top p",
    max_completion_tokens: "Max tokens",
    seed: "Seed",
    earlier: "Earlier turns",
    "earlier-auto": "as needed",
    "earlier-all": "sent along",
    "earlier-none": "not sent",
    system: "System prompt",
    default: "default",
    none: "none",
    runs: "Runs",
    "runs-none": "None beside the server.",
    report: "Report",
    "report-of": "Report of {name}",
    "not-measured": "not measured",
    "answer-of": "Answer of {name}",
    writing: "writing …",
    right: "Right",
    wrong: "Wrong",
    answered: "answered",
    "right-answer": "right",
    "no-answer": "no answer found",
    tally: "{right} of {marked} right",
    tokens: "{n} tokens",
    seconds: "{n} s",
    length: "cut off at the most tokens allowed",
    stopped: "stopped",
    nothing: "(nothing)",
    thought: "Thoughts",
    unmarked: "Not marked: {reason}",
    refused: "Refused",
    "failed-401": "The server asks for an API key.",
    "failed-429": "The server is busy.",
    "failed-lost": "The connection was lost. Ask again.",
    "failed-malformed": "The server sent something that cannot be read. Ask again.",
    "failed-other": "Not answered ({status}).",
    field: "Field: {field}",
    "retry-after": "Try again in {n} s.",
    "no-models": "The server serves no model.",
    "not-ready": "not ready",
    "context-of": "{n} tokens",
    "on-base": "on {name}",
  },
  zh: {
    skip: "跳到提问框",
    new: "新对话",
    menu: "菜单",
    language: "English",
    dark: "深色",
    light: "浅色",
    first: "第一个模型",
    second: "第二个模型，并排比较",
    alone: "与……比较",
    conversation: "对话",
    key: "API 密钥",
    use: "使用",
    "key-note": "密钥只留在此标签页中，关闭后即忘记。",
    "change-key": "API 密钥……",
    empty: "请在下方输入问题。",
    "empty-draw": "请在下方输入问题，或抽取一道题：题目的回答会判对错。",
    question: "问题",
    draw: "抽题",
    "draw-note": "抽取一道算术题并提问",
    send: "发送",
    stop: "停止",
    keys: "Enter 发送，Shift+Enter 换行，Esc 停止。",
    again: "重新提问",
    edit: "修改",
    settings: "设置",
    temperature: "温度",
    top_p: "Top p",
    max_completion_tokens: "最大 token 数",
    seed: "随机种子",
    earlier: "之前的对话",
    "earlier-auto": "按模型需要",
    "earlier-all": "一并发送",
    "earlier-none": "不发送",
    system: "系统提示",
    default: "默认",
    none: "无",
    runs: "训练记录",
    "runs-none": "服务器旁没有训练记录。",
    report: "报告",
    "report-of": "{name} 的报告",
    "not-measured": "未测量",
    "answer-of": "{name} 的回答",
    writing: "正在回答……",
    right: "正确",
    wrong: "错误",
    answered: "回答",
    "right-answer": "正解",
    "no-answer": "未找到答案",
    tally: "{marked} 题对 {right} 题",
    tokens: "{n} 个 token",
    seconds: "{n} 秒",
    length: "已截断：达到最大 token 数",
    stopped: "已停止",
    nothing: "（空）",
    thought: "思考过程",
    unmarked: "未判对错：{reason}",
    refused: "被拒绝",
    "failed-401": "服务器需要 API 密钥。",
    "failed-429": "服务器繁忙。",
    "failed-lost": "连接已中断，请重新提问。",
    "failed-malformed": "服务器发来的内容无法读取，请重新提问。",
    "failed-other": "未能回答（{status}）。",
    field: "字段：{field}",
    "retry-after": "请在 {n} 秒后重试。",
    "no-models": "服务器没有提供模型。",
    "not-ready": "未就绪",
    "context-of": "{n} 个 token",
    "on-base": "基于 {name}",
  },
};
const PLACES = { word: "textContent", label: "ariaLabel", hint: "placeholder", title: "title" };
const filledIn = new WeakMap();

let language = "en";

/** The language that was chosen here before, or that the browser asks for. */
export function preferredLanguage() {
  return localStorage.getItem(STORED) ?? (navigator.language.toLowerCase().startsWith("zh") ? "zh" : "en");
}

/** Say everything in a language, `en` or `zh`. */
export function speak(wanted) {
  language = wanted in WORDS ? wanted : "en";
  document.documentElement.lang = language === "zh" ? "zh-CN" : "en";
  for (const place of Object.keys(PLACES)) {
    for (const element of document.querySelectorAll(`[data-${place}]`)) put(element, place);
  }
}

/** Go over to the other language, and remember it. */
export function switchLanguage() {
  const other = language === "zh" ? "en" : "zh";
  localStorage.setItem(STORED, other);
  speak(other);
  document.getElementById("language").lang = other === "zh" ? "en" : "zh-CN";
}

/** Let an element say a word, with values filled in; `place` is `word` (its text), `label`, `hint` or `title`. */
export function say(element, word, values = {}, place = "word") {
  element.dataset[place] = word;
  filledIn.set(element, { ...filledIn.get(element), [place]: values });
  put(element, place);
  return element;
}

function put(element, place) {
  const values = filledIn.get(element)?.[place] ?? {};
  const text = WORDS[language][element.dataset[place]];
  element[PLACES[place]] = text.replace(/\{(\w+)\}/g, (_, name) => String(values[name]));
}
