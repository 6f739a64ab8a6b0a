-- Pandoc reader: the parts of a page (JSON made by pandoc_page of pages.py) as one HTML document.

local PDF = pandoc.path.join({ pandoc.path.directory(PANDOC_SCRIPT_FILE), "..", "notebook_pdf" })
local markup = dofile(pandoc.path.join({ PDF, "markup.lua" }))

local page -- what pages.py has written: parts, base, target, prefix, here, addresses, elsewhere
local image_count = 0
local title_done = false

local function convert_image(image, part)
  local path = markup.image_path(image, part, page.base)
  if not path then  -- no request to another host
    return #image.caption > 0 and image.caption or pandoc.Str("[remote image]")
  end
  image_count = image_count + 1
  local copy = "image-" .. image_count .. (path:match("%.%w+$") or ".png")
  local source = assert(io.open(path, "rb"))
  local target = assert(io.open(pandoc.path.join({ page.target, copy }), "wb"))
  target:write(source:read("a"))
  source:close()
  target:close()
  image.src = page.prefix .. copy
  return image
end

-- A path relative to the repository's root, from one that is relative to this page's source.
local function from_root(target)
  local names = {}
  for name in (page.here .. "/" .. target):gmatch("[^/]+") do
    if name == ".." then
      table.remove(names)
    elseif name ~= "." then
      names[#names + 1] = name
    end
  end
  return table.concat(names, "/")
end

-- Files of the repository: their page here, else their place on GitHub if that is known, else text.
local function convert_link(link)
  if link.target:match("^#") or link.target:match("^%a[%w+.-]*:") then return nil end
  local path, fragment = link.target:match("^([^#]*)(.*)$")
  path = from_root(path)
  if page.addresses[path] then
    link.target = page.addresses[path] .. fragment
  elseif page.elsewhere ~= "" then
    link.target = page.elsewhere .. path .. fragment
  else
    return link.content
  end
  return link
end

local function convert_math(math)
  math.text = markup.prepare_tex(math.text)
  return math
end

-- Intervals and spreads stay in one line: "[0.1, 0.2]", "± 0.1".
local function keep_together(inlines)
  for i = 2, #inlines do
    local before = inlines[i - 1].text or ""
    if inlines[i].t == "Space" and (before:match("^%[.*,$") or before == "±") then
      inlines[i] = pandoc.Str("\u{a0}")
    end
  end
  return inlines
end

-- A wide table scrolls sideways by itself, and not the whole page.
local function convert_table(tbl)
  markup.align_table(tbl)
  tbl = tbl:walk({ Inlines = keep_together })
  return pandoc.Div({ tbl }, { class = "table", tabindex = "0" })
end

local function convert_header(header)
  if header.level == 1 and not title_done then
    title_done = true
    return {
      pandoc.RawBlock("html", '<h1 id="' .. header.identifier .. '">'),
      pandoc.Plain(header.content),
      pandoc.RawBlock("html", "</h1>\n" .. page.below_title),
    }
  end
end

local function read_part(part)
  if part.kind == "raw" then
    return { pandoc.RawBlock("html", part.text) }
  end
  return markup.read_blocks(part):walk({
    Image = function(image) return convert_image(image, part) end,
    Link = convert_link,
    Math = convert_math,
    Table = convert_table,
  })
end

function Reader(input)
  page = pandoc.json.decode(tostring(input), false)
  local blocks = pandoc.Blocks({})
  for _, part in ipairs(page.parts) do
    blocks:extend(read_part(part))
  end
  blocks = markup.resolve_links(blocks, true)
  return pandoc.Pandoc(blocks:walk({ Header = convert_header }))
end
