// Keep the page's files, so that it opens without a network. Every version has its own address and its own cache.
const version = new URL(self.location).searchParams.get("v");
const OURS = `carnet ${self.registration.scope} `;

const fill = async () => {
  const cache = await caches.open(OURS + version);
  const fresh = path => new Request(path, {cache: "reload"});
  const files = await (await fetch(fresh("files.json?v=" + version))).json();
  await cache.addAll([fresh("./"), ...files.map(fresh)]);
  await self.skipWaiting();
};

const removeOlder = async () => {
  for (const name of await caches.keys()) if (name.startsWith(OURS) && name !== OURS + version) await caches.delete(name);
  await self.clients.claim();
};

// The page itself comes from the network where there is one, so that a new version is seen at once.
const page = async request => {
  try {
    return await fetch(request);
  } catch {
    return await caches.match("./") || Response.error();
  }
};

self.addEventListener("install", event => event.waitUntil(fill()));
self.addEventListener("activate", event => event.waitUntil(removeOlder()));
self.addEventListener("fetch", event => {
  const {request} = event;
  if (request.method !== "GET" || !request.url.startsWith(self.registration.scope)) return;
  event.respondWith(request.mode === "navigate" ? page(request) : caches.match(request).then(kept => kept || fetch(request)));
});
