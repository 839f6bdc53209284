// Server-sent events with a cursor: let go while nobody looks at the page, taken up again where they were.
const AGAIN = 5000; // ms until a desk that refused or is gone is asked again
const PATIENCE = 4000; // ms without a connection until the page says so: the browser has tried again by then
const EVERY = 15000; // ms between two heartbeats, until the first one says how many
const MISSED = 2.5; // heartbeats without a word after which a connection counts as dead, though it is open

// Over the page, so that nothing moves; there from the start, so that what it says later is read aloud.
function notice() {
  const place = Object.assign(document.createElement("div"), { id: "lost" });
  place.setAttribute("role", "status");
  document.body.append(place);
  let timer = 0;
  return {
    lost(before = 0, patience = PATIENCE) {
      if (timer) return;
      const since = new Date(Date.now() - before).toLocaleTimeString();
      timer = setTimeout(() => {
        const words = `No connection to the desk since ${since}. What is shown may be old; trying again.`;
        place.replaceChildren(Object.assign(document.createElement("p"), { className: "notice warn", textContent: words }));
      }, patience);
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
  let quiet = 0;
  let every = EVERY;
  let done = false;
  const connection = notice();
  // A desk that hangs, or a machine that slept, closes nothing: nobody is told but by the silence.
  function listen() {
    clearTimeout(quiet);
    quiet = setTimeout(() => {
      connection.lost(MISSED * every, 0);
      shut();
      open();
    }, MISSED * every);
  }
  function open() {
    clearTimeout(timer);
    if (source || done || document.hidden) return;
    const url = new URL(address, location.href);
    url.searchParams.set("after", cursor);
    source = new EventSource(url);
    listen();
    source.addEventListener("message", ({ data }) => {
      every = 1000 * JSON.parse(data).every;
      listen();
    });
    for (const [name, handler] of Object.entries(hear))
      source.addEventListener(name, (event) => {
        if (done) return;
        listen();
        cursor = event.lastEventId || cursor;
        handler(JSON.parse(event.data));
      });
    source.addEventListener("open", () => {
      connection.back();
      listen();
    });
    source.addEventListener("error", () => {
      connection.lost();
      // The browser comes back by itself, unless it was refused.
      if (source?.readyState !== EventSource.CLOSED) return;
      shut();
      timer = setTimeout(open, AGAIN);
    });
  }
  function shut() {
    clearTimeout(quiet);
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
