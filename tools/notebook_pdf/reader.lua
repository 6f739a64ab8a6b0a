-- Pandoc reader: the parts of a notebook (JSON made by exporter.py) as one Typst document.

local markup = dofile(pandoc.path.join({ pandoc.path.directory(PANDOC_SCRIPT_FILE), "markup.lua" }))

-- Names that texmath writes and that Typst has given up, as {pattern, replacement}.
local RENAMED_SYMBOLS = {
  { "%f[%w]sect%f[%W]", "inter" },
  { "times%.circle", "times.o" }, { "dot%.circle", "dot.o" }, { "minus%.circle", "minus.o" },
  { "%f[%w]lt%.tri%f[%W]", "lt.closed" }, { "%f[%w]gt%.tri%f[%W]", "gt.closed" },
  { 'delim: "||"', 'delim: "|"' },
}

local base, folder -- of the notebook (relative images), of the Typst document (copies of them)
local image_count = 0
local title_done = false

-- \bigl( x \bigr) as \left( x \right) where both ends stand in one line and one column: Typst
-- then takes them for a pair.
local function size_delimiters(tex)
  local _, left = tex:gsub("\\[bB]igg?l%f[^%a]", "")
  local _, right = tex:gsub("\\[bB]igg?r%f[^%a]", "")
  if left ~= right or tex:find("\\\\") or tex:find("&") then return tex end
  return (tex:gsub("\\[bB]igg?l%f[^%a]", "\\left"):gsub("\\[bB]igg?r%f[^%a]", "\\right"))
end

local function repair_typst(typst)
  for _, rule in ipairs(RENAMED_SYMBOLS) do
    typst = typst:gsub(rule[1], rule[2])
  end
  -- \bigl( and friends: the name of a symbol means that symbol only inside dollar signs
  typst = typst:gsub("#scale%(x: (%d+%%), y: %d+%%%)%[(\\.)%]", "#scale(%1, reflow: true)[$%2$]")
  typst = typst:gsub("#scale%(x: (%d+%%), y: %d+%%%)%[([^%]$]+)%]", "#scale(%1, reflow: true)[$%2$]")
  -- white space around a bar would be printed
  typst = typst:gsub("bar%.v%.double", "‖"):gsub(" *‖ *", "‖"):gsub(" *\\| *", "\\|")
  typst = typst:gsub("(#scale%b()%b[]) +([%a\\])", "%1%2")
  -- spaces of less than 1 em, which texmath rounds to whole ones
  typst = typst:gsub("#h%(0em%)", "thick")
  return (typst:gsub('"(arg ?m%a+)"_', 'op("%1", limits: #true)_'))
end

local function convert_math(math)
  local tex = size_delimiters(markup.prepare_tex(math.text))
  local document = pandoc.Pandoc({ pandoc.Plain({ pandoc.Math(math.mathtype, tex) }) })
  local typst = pandoc.write(document, "typst", { wrap_text = "none" })
  return pandoc.RawInline("typst", repair_typst(typst))
end

-- A cell or paragraph that begins like Typst markup ("+", "=", "1.") is plain text here.
local function escape_start(block)
  local first = block.content[1]
  if first and first.t == "Str" and (first.text:match("^[%+%-=/]+$") or first.text:match("^%d+%.$")) then
    local escaped = first.text:gsub("[%+%-=/%.]", "\\%0")
    block.content[1] = pandoc.RawInline("typst", escaped)
    return block
  end
end

local function convert_image(image, part)
  local path = markup.image_path(image, part, base)
  if not path then
    return #image.caption > 0 and image.caption or pandoc.Str("[remote image]")
  end
  image_count = image_count + 1
  local copy = "image-" .. image_count .. (path:match("%.%w+$") or ".png")
  local target = assert(io.open(pandoc.path.join({ folder, copy }), "wb"))
  local stream = assert(io.open(path, "rb"))
  target:write(stream:read("a"))
  stream:close()
  target:close()
  image.src = copy
  return image
end

-- Number of characters that the columns need at least: their longest words, added.
local function minimum_width(tbl)
  local longest = {}
  local function see(rows)
    for _, row in ipairs(rows) do
      for i, cell in ipairs(row.cells) do
        for word in pandoc.utils.stringify(cell.contents):gmatch("%S+") do
          longest[i] = math.max(longest[i] or 1, utf8.len(word) or #word)
        end
      end
    end
  end
  see(tbl.head.rows)
  for _, body in ipairs(tbl.bodies) do see(body.body) end
  local total = 0
  for i = 1, #tbl.colspecs do total = total + (longest[i] or 1) end
  return total
end

local function convert_table(tbl)
  markup.align_table(tbl)
  return {
    pandoc.RawBlock("typst", "#fitted-table(" .. minimum_width(tbl) .. ", " .. #tbl.colspecs .. ")["),
    tbl,
    pandoc.RawBlock("typst", "]"),
  }
end

-- A label needs something to stand on.
local function anchor(identifier)
  return "#metadata(none)<" .. identifier .. ">"
end

local function convert_span(span)
  if span.identifier == "" then return nil end
  local label = pandoc.RawInline("typst", anchor(span.identifier))
  span.identifier = ""
  return { label, span }
end

local function convert_header(header)
  if header.level == 1 and not title_done then
    title_done = true
    local label = header.identifier ~= "" and anchor(header.identifier) .. "\n" or ""
    return {
      pandoc.RawBlock("typst", label .. "#title-block(facts: facts)["),
      pandoc.Plain(header.content),
      pandoc.RawBlock("typst", "]\n#contents()"),
    }
  end
end

local function read_part(part)
  if part.kind == "typst" then
    return { pandoc.RawBlock("typst", part.text) }
  end
  local blocks = markup.read_blocks(part):walk({
    Image = function(image) return convert_image(image, part) end,
    Table = convert_table,
  })
  blocks = blocks:walk({ Math = convert_math })
  return blocks:walk({ Plain = escape_start, Para = escape_start })
end

function Reader(input)
  local notebook = pandoc.json.decode(tostring(input), false)
  base, folder = notebook.base, notebook.folder
  local blocks = pandoc.Blocks({})
  for _, part in ipairs(notebook.parts) do
    blocks:extend(read_part(part))
  end
  blocks = markup.resolve_links(blocks, false)
  return pandoc.Pandoc(blocks:walk({ Header = convert_header, Span = convert_span }))
end
