// Server-sent events with a cursor: let go while nobody looks at the page, taken up again where they were.
const AGAIN = 5000; // ms until a desk that refused or is gone is asked again
const PATIENCE = 4000; // ms without a connection until the page says so: the browser has tried again by then

// Over the page, so that nothing moves; there from the start, so that what it says later is read aloud.
function notice() {
  const place = Object.assign(document.createElement("div"), { id: "lost" });
  place.setAttribute("role", "status");
  document.body.append(place);
  let timer = 0;
  return {
    lost() {
      if (timer) return;
      const since = new Date().toLocaleTimeString();
      timer = setTimeout(() => {
        const words = `No connection to the desk since ${since}. What is shown may be old; trying again.`;
        place.replaceChildren(Object.assign(document.createElement("p"), { className: "notice warn", textContent: words }));
      }, PATIENCE);
    },
    back() {
      clearTimeout(timer);
      timer = 0;
      place.replaceChildren();
    },
  };
}

export function follow(address, cursor, hear) {
  let source = null;
  let timer = 0;
  let done = false;
  const connection = notice();
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
    source.addEventListener("open", connection.back);
    source.addEventListener("error", () => {
      connection.lost();
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
    if (!document.hidden) return open();
    shut();
    connection.back();
  }
  document.addEventListener("visibilitychange", seen);
  open();
  return {
    close() {
      done = true;
      clearTimeout(timer);
      shut();
      connection.back();
      document.removeEventListener("visibilitychange", seen);
    },
    to(other) {
      address = other;
      shut();
      open();
    },
  };
}
