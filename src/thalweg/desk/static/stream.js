// Server-sent events with a cursor: let go while nobody looks at the page, taken up again where they were.
const AGAIN = 5000; // ms until a desk that refused or is gone is asked again

export function follow(address, cursor, hear) {
  let source = null;
  let timer = 0;
  let done = false;
  function open() {
    clearTimeout(timer);
    if (source || done || document.hidden) return;
    const url = new URL(address, location.href);
    url.searchParams.set("after", cursor);
    source = new EventSource(url);
    for (const [name, handler] of Object.entries(hear))
      source.addEventListener(name, (event) => {
        if (done) return;
        cursor = event.lastEventId || cursor;
        handler(JSON.parse(event.data));
      });
    source.addEventListener("error", () => {
      // The browser comes back by itself, unless it was refused.
      if (source?.readyState !== EventSource.CLOSED) return;
      shut();
      timer = setTimeout(open, AGAIN);
    });
  }
  function shut() {
    source?.close();
    source = null;
  }
  function seen() {
    if (document.hidden) shut();
    else open();
  }
  document.addEventListener("visibilitychange", seen);
  open();
  return {
    close() {
      done = true;
      clearTimeout(timer);
      shut();
      document.removeEventListener("visibilitychange", seen);
    },
    to(other) {
      address = other;
      shut();
      open();
    },
  };
}
