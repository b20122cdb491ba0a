// Chromium shows no data: address of more than 2 MiB in a frame, and Snakemake's report puts pages there as such:
// hand them over as blob: addresses instead, which have no limit.
for (const result of Object.values(results)) {
  if (result.mime_type === "text/html") {
    const bytes = Uint8Array.from(atob(result.data_uri.split(",")[1]), (c) => c.charCodeAt(0));
    result.data_uri = URL.createObjectURL(new Blob([bytes], { type: "text/html;charset=utf-8" }));
  }
}
