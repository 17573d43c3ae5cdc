// Keep the page's files, so that it opens without a network. Every version has its own address and its own cache.
const version = new URL(self.location).searchParams.get("v");
const OURS = `carnet ${self.registration.scope} `;
const PATIENCE = 4000;  // milliseconds for a network that does not answer
const opened = caches.open(OURS + version);
const kept = async request => (await opened).match(request, {ignoreVary: true});

// While a new version is being uploaded, a host may give some files of the older one: those are refused.
const keep = async ([path, digest]) => {
  const answer = await fetch(path, {cache: "no-cache"});
  const found = new Uint8Array(await crypto.subtle.digest("SHA-256", await answer.clone().arrayBuffer()));
  const text = [...found].map(byte => byte.toString(16).padStart(2, "0")).join("");
  if (!answer.ok || text !== digest) throw new Error(`${path} is not that of this version`);
  await (await opened).put(path, answer);
};

const fill = async () => {
  const files = await (await fetch("files.json?v=" + version, {cache: "no-cache"})).json();
  await Promise.all(Object.entries(files).map(keep));
  await self.skipWaiting();
};

const removeOlder = async () => {
  for (const name of await caches.keys()) if (name.startsWith(OURS) && name !== OURS + version) await caches.delete(name);
  await self.clients.claim();
};

// The page itself comes from the network where there is one, so that a new version is seen at once.
const page = async request => {
  try {
    const answer = await fetch(request, {cache: "no-cache", signal: AbortSignal.timeout(PATIENCE)});
    return answer.status < 500 ? answer : await kept("./") || answer;
  } catch {
    return await kept("./") || Response.error();
  }
};

self.addEventListener("install", event => event.waitUntil(fill()));
self.addEventListener("activate", event => event.waitUntil(removeOlder()));
self.addEventListener("fetch", event => {
  const {request} = event;
  if (request.method !== "GET" || !request.url.startsWith(self.registration.scope)) return;
  event.respondWith(request.mode === "navigate" ? page(request) : kept(request).then(found => found || fetch(request)));
});
