// A streamed completion: bytes of server-sent events in, pieces of answers out.

import { ApiError, call } from "./api.js";

/**
 * Ask for a completion and hand over what comes: `on.start({version, feedbackOff})`,
 * `on.text(choice, piece, id)`, `on.finish(choice, reason)`, `on.version(name)` when a swap crossed
 * the reply. Resolves when the stream is complete. Throws ApiError, or AbortError when stopped.
 */
export async function streamChat(body, on, signal) {
  const response = await call("POST", "/v1/chat/completions", { ...body, stream: true }, { signal });
  on.start({
    version: response.headers.get("x-policy-version"),
    feedbackOff: response.headers.get("x-feedback-off"),
  });
  let complete = false;
  for await (const event of events(response.body)) {
    if (event.comment?.startsWith("policy-version ")) on.version(event.comment.slice(15).trim());
    if (event.data === "[DONE]") complete = true;
    else if (event.data) take(JSON.parse(event.data), on);
  }
  if (!complete) throw new ApiError(502, "the answer broke off");
}

function take(chunk, on) {
  if (chunk.error) throw new ApiError(Number(chunk.error.code) || 502, chunk.error.message ?? "the answer broke off");
  for (const choice of chunk.choices ?? []) {
    on.text(choice.index, choice.delta?.content ?? "", chunk.id);
    if (choice.finish_reason) on.finish(choice.index, choice.finish_reason);
  }
}

/** The events of a stream: their data, or the text of a comment. */
export async function* events(stream) {
  const reader = stream.pipeThrough(new TextDecoderStream()).getReader();
  let rest = "";
  try {
    while (true) {
      const { value, done } = await reader.read();
      if (done) break;
      rest += value.replaceAll("\r", "");
      const whole = rest.split("\n\n");
      rest = whole.pop();
      yield* whole.map(parse);
    }
    if (rest.trim()) yield parse(rest);
  } catch (error) {
    if (error.name === "AbortError" || error instanceof ApiError) throw error;
    throw new ApiError(0, "the connection broke off");
  } finally {
    reader.cancel().catch(() => {});
  }
}

function parse(block) {
  const event = { data: "", comment: null };
  const data = [];
  for (const line of block.split("\n")) {
    if (line.startsWith("data:")) data.push(line.slice(5).replace(/^ /, ""));
    else if (line.startsWith(":")) event.comment = line.slice(1).trim();
  }
  event.data = data.join("\n");
  return event;
}
