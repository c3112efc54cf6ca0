// Rate: the best of four masks, again and again; the server writes each choice down.

import { inTurn, pixels, post, say } from "./api.js";
import { four } from "./play.js";

export function rate(root) {
  const $ = selector => root.querySelector(selector), turn = inTurn();
  let rating = null, image = null, count = 0;
  const show = four(root.querySelector(".four"), choose);

  function update() {
    $(".rated").textContent = count;
    $(".left").textContent = rating.max_prompts - rating.prompts;
    if (rating.offers) show(image, rating);
  }

  async function fresh() {
    rating = await post("/rate/new", { env_id: $(".environment").value });
    image = await pixels(`/rate/pixels?rating=${rating.rating}`);
    update();
    root.dataset.rating = rating.rating;
  }

  function choose(choice) {
    return turn(async () => {
      if (!rating || rating.ended) return;
      rating = { ...rating, ...(await post("/rate/choose", { rating: rating.rating, choice })) };
      count += 1;
      root.dataset.count = count;
      say(`${count} choices written`);
      update();
      if (rating.ended) await fresh();
    });
  }

  $("[data-do=none]").addEventListener("click", () => choose(null));
  $("[data-do=new]").addEventListener("click", () => turn(fresh));
  $(".environment").addEventListener("change", () => turn(fresh));

  function keys(key) {
    if (/^[1-4]$/.test(key)) choose(Number(key) - 1);
    else if (key === "0") choose(null);
    else if (key === "n") turn(fresh);
    else return false;
    return true;
  }

  turn(fresh);
  return { keys };
}
