-- Pandoc reader: the parts of a notebook (JSON made by exporter.py) as one document.
-- Every part is parsed by itself, so that an open fence or tag cannot swallow the next cell.

-- GitHub's dialect: what the notebook looks like there is what it should look like in print.
local MARKDOWN = "gfm+tex_math_dollars+footnotes-yaml_metadata_block"
local MATH_ENVIRONMENTS = {
  align = "aligned", ["align*"] = "aligned", aligned = "aligned",
  equation = false, ["equation*"] = false,
  gather = "gathered", ["gather*"] = "gathered",
  multline = "gathered", ["multline*"] = "gathered",
}
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

-- TeX that MathJax accepts and texmath does not, or translates badly.
local function prepare_tex(tex)
  tex = tex:gsub("\\!", ""):gsub("\\bigm", "\\big"):gsub("\\Bigm", "\\Big")
  tex = tex:gsub("\\biggm", "\\bigg"):gsub("\\|", "\\Vert ")
  tex = size_delimiters(tex)
  local name, body = tex:match("^%s*\\begin{(%a+%*?)}(.*)\\end{%a+%*?}%s*$")
  local inner = name and MATH_ENVIRONMENTS[name]
  if inner then
    tex = "\\begin{" .. inner .. "}" .. body .. "\\end{" .. inner .. "}"
  elseif inner == false then
    tex = body
  end
  return tex
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
  local tex = prepare_tex(math.text)
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
  local source = image.src
  if source:match("^%a+://") or source:match("^//") then
    return #image.caption > 0 and image.caption or pandoc.Str("[remote image]")
  end
  local attached = source:match("^attachment:(.*)$")
  local path
  if attached then
    path = part.attachments[attached]
  else
    path = pandoc.path.is_absolute(source) and source or pandoc.path.join({ base, source })
  end
  local stream = path and io.open(path, "rb")
  if not stream then
    error("missing image: " .. source .. " in cell " .. part.cell)
  end
  image_count = image_count + 1
  local copy = "image-" .. image_count .. (path:match("%.%w+$") or ".png")
  local target = assert(io.open(pandoc.path.join({ folder, copy }), "wb"))
  target:write(stream:read("a"))
  stream:close()
  target:close()
  image.src = copy
  return image
end

local function is_number(cell)
  local text = pandoc.utils.stringify(cell.contents):gsub("%s", "")
  return text == "" or text:match("^[%+%-−±%d%.,%%eE%[%]%(%)–/]+$") ~= nil
    or text == "NaN" or text == "nan" or text == "inf"
end

-- pandas writes the name of the index into a second row of the head: one row is enough.
local function merge_head(head)
  local first, second = head.rows[1], head.rows[2]
  if #head.rows ~= 2 then return end
  for i, cell in ipairs(second.cells) do
    local empty = pandoc.utils.stringify(cell.contents) == ""
    if (i == 1) == empty then return end
  end
  if pandoc.utils.stringify(first.cells[1].contents) ~= "" then return end
  first.cells[1].contents = second.cells[1].contents
  head.rows = { first }
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

-- HTML tables carry no alignment that pandoc understands: numbers to the right, words to the left.
local function convert_table(tbl)
  merge_head(tbl.head)
  local numeric = {}
  for _, body in ipairs(tbl.bodies) do
    for _, row in ipairs(body.body) do
      for i, cell in ipairs(row.cells) do
        if numeric[i] ~= false then numeric[i] = is_number(cell) end
      end
    end
  end
  for i, spec in ipairs(tbl.colspecs) do
    if spec[1] == pandoc.AlignDefault then
      tbl.colspecs[i] = { numeric[i] and pandoc.AlignRight or pandoc.AlignLeft, spec[2] }
    end
  end
  return {
    pandoc.RawBlock("typst", "#fitted-table(" .. minimum_width(tbl) .. ", " .. #tbl.colspecs .. ")["),
    tbl,
    pandoc.RawBlock("typst", "]"),
  }
end

-- MathJax shows \begin{align} without dollars; Markdown would eat its backslashes.
local function wrap_environments(text)
  text = "\n" .. text .. "\n"  -- a table row needs its end of line
  for name in pairs(MATH_ENVIRONMENTS) do
    local tag = name:gsub("%*", "%%*")
    text = text:gsub("\n(%s*\\begin{" .. tag .. "}.-\\end{" .. tag .. "})[ \t]*%f[\n\0]", function(block)
      return "\n$$" .. block .. "$$"
    end)
  end
  return text
end

local function convert_raw_block(block)
  if block.format == "html" then
    return pandoc.read(block.text, "html+tex_math_dollars").blocks
  end
end

local function convert_raw_inline(inline)
  if inline.format ~= "html" then return nil end
  if inline.text:match("^<br%s*/?>") then return pandoc.LineBreak() end
  if inline.text:match("^<img%s") then
    return pandoc.utils.blocks_to_inlines(pandoc.read(inline.text, "html").blocks)
  end
end

local function convert_header(header)
  if header.level == 1 and not title_done then
    title_done = true
    return {
      pandoc.RawBlock("typst", "#title-block(facts: facts)["),
      pandoc.Plain(header.content),
      pandoc.RawBlock("typst", "]\n#contents()"),
    }
  end
end

local function read_part(part)
  if part.kind == "typst" then
    return { pandoc.RawBlock("typst", part.text) }
  end
  local format = part.kind == "html" and "html" or MARKDOWN
  local text = part.kind == "html" and part.text or wrap_environments(part.text)
  local document = pandoc.read(text, format)
  -- Raw blocks first: they become blocks that the other functions must see.
  document = document:walk({ RawBlock = convert_raw_block, RawInline = convert_raw_inline })
  document = document:walk({
    Image = function(image) return convert_image(image, part) end,
    Header = convert_header,
    Table = convert_table,
  })
  document = document:walk({ Math = convert_math })
  return document:walk({ Plain = escape_start, Para = escape_start }).blocks
end

function Reader(input)
  local notebook = pandoc.json.decode(tostring(input), false)
  base, folder = notebook.base, notebook.folder
  local blocks = pandoc.List()
  for _, part in ipairs(notebook.parts) do
    blocks:extend(read_part(part))
  end
  return pandoc.Pandoc(blocks)
end
